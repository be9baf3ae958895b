"""Objects of the k8s folder as kustomize renders them, and what an old cluster takes of them.

Reads k8s/; writes only where it is told to. Invariant: what is changed for the cluster of the tests is said
here and nowhere else, and never in k8s/.
"""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.kube_tools import ROOT

K8S = ROOT / "k8s"
OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/dev")
COMPONENTS = ("redis", "redis-cluster", "object-store")
OPERATORS = ("monitoring.coreos.com/", "serving.kserve.io/")
Object = dict[str, Any]


def render(kubectl: Path, folder: Path) -> list[Object]:
    """Every object of a kustomization, by kind and name."""
    done = subprocess.run([str(kubectl), "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    return sorted(objects, key=lambda item: (item["kind"], item["metadata"]["name"]))


def kustomizations() -> list[str]:
    """What can be applied by itself: no base, no component, no part of another."""
    whole = [*OVERLAYS, "kserve"]
    jobs = sorted(path.parent.name for path in (K8S / "jobs").glob("*/kustomization.yaml"))
    return whole + [f"jobs/{name}" for name in jobs if name not in ("work", "demo")]


def write_overlay(folder: Path, base: str, **fields: Any) -> Path:
    """A kustomization in a folder of its own, on top of one of ours.

    Args:
        folder: To write; made if missing.
        base: Folder below k8s.
        fields: Of kustomization.yaml, e.g. images, patches, components.
    """
    folder.mkdir(parents=True, exist_ok=True)
    components = [os.path.relpath(K8S / "components" / name, folder) for name in fields.pop("components", [])]
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(K8S / base, folder)],
        "components": components,
        **fields,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def pods_of(item: Object) -> list[Object]:
    """Pod specs that an object makes; an InferenceService's predictor is one with fields of its own."""
    kind, spec = item["kind"], item.get("spec", {})
    if kind in ("Deployment", "StatefulSet", "Job"):
        return [spec["template"]["spec"]]
    if kind == "CronJob":
        return [spec["jobTemplate"]["spec"]["template"]["spec"]]
    if kind == "InferenceService":
        own = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout"}
        return [{key: value for key, value in spec["predictor"].items() if key not in own}]
    return []


def containers_of(pod: Object) -> list[Object]:
    """All containers of a pod, those of its start first."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def is_known(item: Object) -> bool:
    """Whether the cluster of the tests takes an object: it dies of those of operators."""
    return not item["apiVersion"].startswith(OPERATORS)


def for_one_twenty(item: Object) -> Object:
    """An object as Kubernetes 1.20 takes it, which lacks versions that all promised ones have."""
    old = copy.deepcopy(item)
    beta = {"HorizontalPodAutoscaler": "autoscaling/v2beta2", "PodDisruptionBudget": "policy/v1beta1"}
    old["apiVersion"] = beta.get(old["kind"], old["apiVersion"])
    if old["kind"] == "CronJob":
        old["apiVersion"] = "batch/v1beta1"
        old["spec"].pop("timeZone")
    return old
