"""The overlays on a real one-node Kubernetes, from an empty cluster to a retrained model that serves.

Tests follow each other on one cluster; each leaves it serving. The cluster is 1.20, which lacks three API
versions that every promised one has (`for_one_twenty`), dies of custom objects (`is_known`), has no adapter
for metrics of pods and does not enforce NetworkPolicy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.deploy import kube_cluster, kube_tools
from tests.deploy.conftest import Figures, Images
from tests.deploy.engine import ROOT, Engine
from tests.deploy.kube_cluster import Cluster, door, volume
from tests.deploy.kube_load import Load
from tests.deploy.kube_render import K8S, Object, write_overlay
from tests.support.bundles import SmallBundle, build_bundle
from tests.support.tokens import TOKEN

SPACE = "ctr-domains"
APP = "ctr-serve"
OWNER = 10001
NEXT_TAG = "0.1.1"
MAX_REPLICAS = 4
# Two replicas, one more while rolling and the load beside them have to fit two cores; the promise is what is
# rendered, not how large it is.
SMALL = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
SMALL_JOB = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "3Gi"}}


@dataclass
class Site:
    """What the tests of this file share.

    Attributes:
        cluster: The cluster.
        folder: For overlays of the tests and folders behind volumes.
        bundle: What serves at first.
        training: Done when the cluster has the image of jobs.
        objects: As applied last, by kind and name.
    """

    cluster: Cluster
    folder: Path
    bundle: SmallBundle
    training: Future[None]
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    port: int = 0

    def apply(self, name: str, **fields: Any) -> None:
        """Apply the cpu overlay in a size that fits this machine, with further fields of a kustomization."""
        patches = [{"patch": json.dumps(part)} for part in (_small(), _few())] + fields.pop("patches", [])
        folder = write_overlay(self.folder / name, "overlays/cpu", patches=patches, **fields)
        found = self.cluster.apply_folder(folder)
        self.objects = {(item["kind"], item["metadata"]["name"]): item for item in found}

    def score(self, body: dict[str, Any], token: str = TOKEN) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.post(f"http://127.0.0.1:{self.port}/score", json=body, headers=headers, timeout=10)

    def load(self, **options: Any) -> Load:
        return Load(self.port, BODY, token=TOKEN, **options)

    def images_of_ready_pods(self) -> list[str]:
        ready = []
        for pod in self.cluster.pods(SPACE, APP):
            states = pod["status"].get("containerStatuses", [])
            if (
                states
                and all(state["ready"] for state in states)
                and "deletionTimestamp" not in pod["metadata"]
            ):
                ready.append(pod["spec"]["containers"][0]["image"])
        return ready


BODY: dict[str, Any] = {
    "domain": "sport",
    "user": {"id": "u3"},
    "items": [{"id": f"i{number}"} for number in range(20)],
}


@pytest.fixture(scope="module")
def site(
    kit: Path,
    engine: Engine,
    images: Images,
    figures: Figures,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """A cluster with the images and nothing deployed.

    While working on these tests, `DEPLOY_CLUSTER` may name the work folder of a cluster that runs already,
    has both images and nothing deployed; it is left running.
    """
    if not (kit / "kube.sh").is_file():
        pytest.skip(f"skipped for want of a kit: {kit} (DEPLOY_KIT) holds no kube.sh")
    try:
        kubectl = kube_tools.kubectl()
        programs = kube_tools.server_programs(kit)
        kube_tools.install_debian_packages()
    except kube_tools.ToolMissingError as missing:
        pytest.skip(f"skipped for want of a tool: {missing}")
    folder = tmp_path_factory.mktemp("kube")
    bundle = build_bundle(_shared(folder / "models"))
    running = os.environ.get("DEPLOY_CLUSTER", "")
    work = Path(running or tempfile.mkdtemp(prefix="kube-"))  # short: it holds sockets
    cluster = kube_cluster.cluster_of(kit, work, programs, kubectl, engine.env)
    try:
        if not running:
            begun = time.monotonic()
            kube_cluster.up(cluster)
            cluster.load(images.service)
            figures.add("kube_start_s", round(time.monotonic() - begun, 1))
        with ThreadPoolExecutor() as pool:
            # Large, and not needed at first.
            training = pool.submit(lambda: None if running else cluster.load(images.training))
            yield Site(cluster, folder, bundle, training)
    finally:
        if not running:
            kube_cluster.down(cluster)
            shutil.rmtree(work, ignore_errors=True)


def test_the_cpu_overlay_serves(site, figures):
    """Every object is taken as it is; scores are those of the formula; nobody is served without a token."""
    cluster = site.cluster
    begun = time.monotonic()
    site.apply("cpu")
    cluster.apply(
        [
            volume(SPACE, "ctr-models", site.folder / "models"),
            door(SPACE, APP, 8000),
            _secret({"tokens": TOKEN, "admin-tokens": "an-admin-token-of-the-tests"}),
        ]
    )
    cluster.rolled_out(SPACE, APP)
    site.port = cluster.get(SPACE, "service", f"{APP}-door")["spec"]["ports"][0]["nodePort"]
    cluster.wait("two replicas", lambda: len(site.images_of_ready_pods()) == 2, timeout_s=120)
    figures.add("kube_first_ready_s", round(time.monotonic() - begun, 1))

    reply = site.score(BODY)
    refused = site.score(BODY, token="")

    assert reply.status_code == 200, reply.text
    assert reply.json()["model"]["bundle"] == site.bundle.bundle.bundle_id
    np.testing.assert_allclose(
        reply.json()["scores"], site.bundle.expected_stored("sport", 3, list(range(20))), atol=1e-5
    )
    assert refused.status_code == 401
    kinds = {kind for kind, _ in site.objects}
    assert kinds >= {"NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    for kind, name in site.objects:
        cluster.get(SPACE, kind, name)
    pod = cluster.pods(SPACE, APP)[0]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_a_new_version_rolls_out_with_no_failed_request(site, figures):
    """A new image and a changed setting, under load: every pod is replaced, every request is answered."""
    site.cluster.tag("ctr-service:0.1.0", f"ctr-service:{NEXT_TAG}")
    before = {pod["metadata"]["name"] for pod in site.cluster.pods(SPACE, APP)}
    begun = time.monotonic()
    with site.load() as load:
        site.apply("next", **_next_version())
        site.cluster.rolled_out(SPACE, APP)
        rolled_s = time.monotonic() - begun
        # Those before it are draining still.
        site.cluster.wait(
            "the pods before to be gone",
            lambda: not before & {pod["metadata"]["name"] for pod in site.cluster.pods(SPACE, APP)},
            timeout_s=180,
        )
    figures.add("kube_rollout", {**load.tally.figures(), "seconds": round(rolled_s, 1)})
    assert load.tally.failed == {}
    assert load.tally.sent > 300
    ready = site.images_of_ready_pods()
    assert len(ready) >= 2  # the load may have made the autoscaler add one
    assert set(ready) == {f"ctr-service:{NEXT_TAG}"}


def test_a_bad_version_stalls_and_is_undone_with_no_failed_request(site, figures):
    """By its routing, which the init container refuses, then by its probe; the last good pods serve on."""
    cluster = site.cluster
    good = site.images_of_ready_pods()
    begun = time.monotonic()
    with site.load() as load:
        routing = "version: 1\nexperiments: [{name: nowhere, bundle: not-there}]\n"
        site.apply("bad", **_next_version(routing=routing))
        bad = cluster.wait("the check to refuse", lambda: _refused_by_check(cluster), timeout_s=120)
        assert "experiments" in cluster.logs(SPACE, bad)

        site.apply("deaf", **_next_version(patches=[{"patch": json.dumps(_deaf())}]))
        cluster.wait("a pod that runs and is not ready", lambda: _runs_unready(cluster), timeout_s=120)
        assert site.images_of_ready_pods() == good

        cluster("-n", SPACE, "rollout", "undo", f"deployment/{APP}", "--to-revision=2")
        cluster.rolled_out(SPACE, APP)
    figures.add("kube_bad_rollout", {**load.tally.figures(), "seconds": round(time.monotonic() - begun, 1)})
    assert load.tally.failed == {}
    assert site.images_of_ready_pods() == good


def test_the_autoscaler_adds_pods_under_load(site, figures):
    """By the CPU that pods really use; that nobody serves the metric of pods does not keep it from that."""
    begun, first = time.monotonic(), len(site.images_of_ready_pods())
    with site.load(threads=4, pause_s=0.0) as load:
        site.cluster.wait(
            "more than two replicas",
            lambda: site.cluster.get(SPACE, "deployment", APP)["spec"]["replicas"] > 2,
            timeout_s=180,
        )
        decided_s = time.monotonic() - begun
        site.cluster.wait("they serve", lambda: len(site.images_of_ready_pods()) > 2, timeout_s=180)
    ready = len(site.images_of_ready_pods())
    scaled = {"decided_s": round(decided_s, 1), "served_s": round(time.monotonic() - begun, 1)}
    figures.add("kube_autoscaler", {**load.tally.figures(), **scaled, "from": first, "to": ready})
    assert load.tally.failed == {}


def test_a_retrained_model_is_published_as_canary_and_promoted(site, figures):
    """The CronJob's job, begun by hand, then the job that moves `stable`: pods follow by themselves."""
    cluster = site.cluster
    data = _shared(site.folder / "data")
    make = ("training.cli", "data", "synthetic", "--preset", "small", "--out", str(data))
    subprocess.run([sys.executable, "-m", *make], check=True, cwd=ROOT, capture_output=True)
    _own(data)
    runs = _shared(site.folder / "runs")
    cluster.apply([volume(SPACE, "ctr-data", data), volume(SPACE, "ctr-runs", runs)])
    site.training.result()
    begun = time.monotonic()
    folder = write_overlay(site.folder / "retrain", "jobs/retrain", patches=[_small_job()])
    (cron,) = [item for item in cluster.apply_folder(folder) if item["kind"] == "CronJob"]
    # As `kubectl create job --from=cronjob/ctr-retrain` does where it knows the version of the CronJob.
    metadata = {"name": "retrain-now", "namespace": SPACE}
    spec = cron["spec"]["jobTemplate"]["spec"]
    cluster.apply([{"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}])
    cluster.job_done(SPACE, "retrain-now", timeout_s=420)
    trained_s = time.monotonic() - begun
    aliases = json.loads((site.folder / "models" / "aliases.json").read_text())
    assert aliases["stable"] == site.bundle.bundle.bundle_id
    assert aliases["canary"] != aliases["stable"]

    cluster.apply_folder(K8S / "jobs" / "promote")
    cluster.job_done(SPACE, "ctr-promote", timeout_s=180)
    body = {"domain": "d00", "user": {"id": "u1"}, "items": [{"id": "i1"}]}

    def answered_by_canary() -> bool:
        replies = [site.score(body) for _ in range(4)]
        return all(
            reply.status_code == 200 and reply.json()["model"]["bundle"] == aliases["canary"]
            for reply in replies
        )

    cluster.wait("the promoted bundle to serve", answered_by_canary, timeout_s=120)
    whole_s = time.monotonic() - begun
    figures.add("kube_retrain_s", {"to_canary": round(trained_s, 1), "to_serving": round(whole_s, 1)})


def test_the_dev_overlay_needs_nothing_before(site, figures):
    """The pod waits in its init container until the job beside it has published; then it serves."""
    cluster, space = site.cluster, "ctr-domains-dev"
    cluster("delete", "namespace", SPACE, "--timeout=120s", timeout_s=150)  # room on this machine
    models = _shared(site.folder / "dev-models")
    site.training.result()
    begun = time.monotonic()
    cluster.apply_folder(K8S / "overlays" / "dev")
    cluster.apply([volume(space, "ctr-models", models), door(space, APP, 8000)])
    cluster.job_done(space, "ctr-demo", timeout_s=420)
    cluster.rolled_out(space, APP)
    site.port = cluster.get(space, "service", f"{APP}-door")["spec"]["ports"][0]["nodePort"]
    body = {"domain": "d00", "user": {"id": "u1"}, "items": [{"id": "i1"}, {"id": "i2"}]}
    reply = site.score(body, token="")
    figures.add("kube_dev_to_serving_s", round(time.monotonic() - begun, 1))

    assert reply.status_code == 200, reply.text
    published = json.loads((models / "aliases.json").read_text())["stable"]
    assert reply.json()["model"]["bundle"] == published
    assert all(0 < score < 1 for score in reply.json()["scores"])


def _shared(folder: Path) -> Path:
    """A folder that pods may write to."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, OWNER, OWNER)
    return folder


def _own(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.chown(path, OWNER, OWNER)


def _deployment(pod: Object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": APP},
        "spec": {"template": {"spec": pod}},
    }


def _small() -> Object:
    return _deployment(
        {
            "initContainers": [{"name": "check", "resources": SMALL}],
            "containers": [{"name": "serve", "resources": SMALL}],
        }
    )


def _few() -> Object:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": APP},
        "spec": {"maxReplicas": MAX_REPLICAS},
    }


def _deaf() -> Object:
    probe = {"httpGet": {"path": "/health/nothing", "port": "http"}}
    return _deployment({"containers": [{"name": "serve", "readinessProbe": probe}]})


def _next_version(*, routing: str = "", **fields: Any) -> dict[str, Any]:
    """Fields of a kustomization: another image tag, a changed setting and, where given, a routing file."""
    settings = {"name": "ctr-settings", "behavior": "merge", "literals": ["CTR_MAX_ITEMS=500"]}
    generated: list[Object] = [settings]
    if routing:
        generated.append(
            {"name": "ctr-routing", "behavior": "replace", "literals": [f"routing.yaml={routing}"]}
        )
    images = [{"name": "ctr-service", "newTag": NEXT_TAG}]
    return {"configMapGenerator": generated, "images": images, **fields}


def _secret(values: dict[str, str]) -> Object:
    metadata = {"name": "ctr-tokens", "namespace": SPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}


def _small_job() -> dict[str, str]:
    """The CronJob's training in a size that fits this machine."""
    pod = {
        "initContainers": [{"name": "train", "resources": SMALL_JOB}],
        "containers": [{"name": "publish", "resources": SMALL_JOB}],
    }
    cron = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "ctr-retrain"},
        "spec": {"jobTemplate": {"spec": {"template": {"spec": pod}}}},
    }
    return {"patch": json.dumps(cron)}


def _refused_by_check(cluster: Cluster) -> str:
    """Name of a pod whose init container has failed."""
    for pod in cluster.pods(SPACE, APP):
        for state in pod["status"].get("initContainerStatuses", []):
            ended = state["state"].get("terminated") or state.get("lastState", {}).get("terminated")
            if ended and ended["exitCode"]:
                return str(pod["metadata"]["name"])
    return ""


def _runs_unready(cluster: Cluster) -> bool:
    """Whether a pod has been up long enough to be ready, and is not."""
    for pod in cluster.pods(SPACE, APP):
        probe = pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
        for state in pod["status"].get("containerStatuses", []):
            if probe == "/health/nothing" and state.get("started"):
                return not state["ready"]
    return False
