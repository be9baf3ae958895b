"""Every kustomization is what its Kubernetes versions, the service and its commands understand."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from k8s import prometheus_rule
from service.app import openapi_document
from service.routing.config import parse_routing
from service.settings import Settings, unknown_variables
from service.supervisor import KILL_MARGIN_S
from service.telemetry.metric_table import TABLE
from tests.deploy.kube_render import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    Object,
    containers_of,
    kustomizations,
    pods_of,
    render,
    write_overlay,
)
from tests.deploy.kube_tools import ROOT, ToolMissingError, kubectl

PROMISE = re.compile(r"Kubernetes (1\.\d+) to (1\.\d+)")
USAGE_ERROR: Any = typer.BadParameter.__base__
CRDS = ("ServiceMonitor", "PrometheusRule", "InferenceService")
TEXT = {"type": "string", "minLength": 1}
DURATION = {"type": "string", "pattern": r"^(\d+(ms|s|m|h|d))+$"}
LABELS = {"type": "object", "additionalProperties": TEXT}
RULE = {
    "type": "object",
    "required": ["expr"],
    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
    "properties": {
        "alert": TEXT,
        "record": {"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"},
        "expr": TEXT,
        "for": DURATION,
        "keep_firing_for": DURATION,
        "labels": LABELS,
        "annotations": LABELS,
    },
    "additionalProperties": False,
}
GROUP = {
    "type": "object",
    "required": ["name", "rules"],
    "properties": {
        "name": TEXT,
        "interval": DURATION,
        "rules": {"type": "array", "minItems": 1, "items": RULE},
    },
    "additionalProperties": False,
}
ENDPOINT = {
    "type": "object",
    "required": ["port"],
    "properties": {"port": TEXT, "path": TEXT, "interval": DURATION, "scrapeTimeout": DURATION},
    "additionalProperties": False,
}
SHAPES: dict[str, Object] = {
    "PrometheusRule": {
        "required": ["groups"],
        "properties": {"groups": {"type": "array", "items": GROUP}},
        "additionalProperties": False,
    },
    "ServiceMonitor": {
        "required": ["selector", "endpoints"],
        "properties": {
            "selector": {"type": "object", "required": ["matchLabels"]},
            "endpoints": {"type": "array", "minItems": 1, "items": ENDPOINT},
        },
        "additionalProperties": False,
    },
}


@cache
def found() -> Path | str:
    """The program, or why there is none."""
    try:
        return kubectl()
    except ToolMissingError as error:
        return str(error)


def tool() -> Path:
    program = found()
    if isinstance(program, str):
        pytest.skip(f"skipped for want of a tool: {program}")
    return program


@cache
def rendered(name: str) -> tuple[Object, ...]:
    """A kustomization of ours, or `overlay+component`, which stands for one that its user writes."""
    overlay, _, component = name.partition("+")
    if not component:
        return tuple(render(tool(), K8S / overlay))
    images = [{"name": "ctr-service", "newTag": "0.1.0"}]
    folder = ROOT / "runs" / "deploy" / "k8s" / component
    write_overlay(folder, overlay, namespace="ctr-domains", components=[component], images=images)
    return tuple(render(tool(), folder))


def everything() -> list[str]:
    return kustomizations() + [f"overlays/cpu+{name}" for name in COMPONENTS]


def of_kind(objects: tuple[Object, ...], kind: str) -> list[Object]:
    return [item for item in objects if item["kind"] == kind]


def promised() -> tuple[str, str]:
    said = PROMISE.search((K8S / "README.md").read_text())
    assert said, "k8s/README.md does not say which versions are promised"
    return said[1], said[2]


def serving(objects: tuple[Object, ...]) -> tuple[Object, Object] | None:
    """The pod that serves, and its container."""
    for item in objects:
        for pod in pods_of(item):
            for container in pod["containers"]:
                if container.get("command") == ["ctr-serve", "run"]:
                    return pod, container
    return None


def settings_of(objects: tuple[Object, ...], container: Object) -> dict[str, str]:
    maps = {item["metadata"]["name"]: item["data"] for item in of_kind(objects, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]
    return found | {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


@pytest.mark.parametrize("version", [0, 1], ids=["oldest", "newest"])
@pytest.mark.parametrize("name", everything())
def test_every_object_is_valid_in_the_oldest_and_the_newest_version(name, version):
    """Strictly: a field that the version does not know is an error, not something to be dropped."""
    for item in rendered(name):
        if item["kind"] not in CRDS:
            kubernetes_validate.validate(item, promised()[version], strict=True)


def test_the_validator_knows_both_versions():
    """Else it would silently take the nearest."""
    from kubernetes_validate.utils import all_versions, major_minor

    assert set(promised()) <= {major_minor(version) for version in all_versions()}


@pytest.mark.parametrize("name", [*OVERLAYS, "kserve"])
def test_objects_of_operators_have_the_shape_that_operators_read(name):
    """The validator has no schema for them."""
    for item in rendered(name):
        if item["kind"] in SHAPES:
            jsonschema.validate(item["spec"], {"type": "object", **SHAPES[item["kind"]]})
        elif item["kind"] == "InferenceService":
            metadata = {"name": item["metadata"]["name"]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pods_of(item)[0]}
            kubernetes_validate.validate(pod, promised()[0], strict=True)
            kubernetes_validate.validate(pod, promised()[1], strict=True)
            assert pods_of(item)[0]["containers"][0]["name"] == "kserve-container"


def test_the_prometheus_rule_is_that_of_compose():
    """`python -m k8s.prometheus_rule` after a change of docker/prometheus/rules."""
    assert yaml.safe_load(prometheus_rule.TARGET.read_text()) == prometheus_rule.prometheus_rule()
    assert prometheus_rule.TARGET.read_text() == prometheus_rule.rendered()


@pytest.mark.parametrize("name", everything())
def test_every_pod_is_locked_down(name):
    """What the pod security standard `restricted` asks, and a root file system that nobody writes to."""
    for item in rendered(name):
        for pod in pods_of(item):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False
            for container in containers_of(pod):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                for amounts in ("requests", "limits"):
                    assert {"cpu", "memory"} <= container["resources"][amounts].keys()


@pytest.mark.parametrize("name", everything())
def test_names_in_an_object_are_those_of_other_objects(name):
    """ConfigMaps of the same kustomization, volumes, probes' and Services' ports, labels, tags of images."""
    objects = rendered(name)
    maps = {item["metadata"]["name"] for item in of_kind(objects, "ConfigMap")}
    for item in objects:
        for pod in pods_of(item):
            volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
            templates = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
            for volume in volumes.values():
                assert len(volume) == 2, f"{volume} must have one source"
                assert volume.get("configMap", {}).get("name", next(iter(maps), None)) in maps | {None}
            for container in containers_of(pod):
                assert re.fullmatch(r"[a-z-]+:[\w.-]+", container["image"]), container["image"]
                used = {mount["name"] for mount in container.get("volumeMounts", [])}
                assert used <= volumes.keys() | templates
                sources = [source.get("configMapRef") for source in container.get("envFrom", [])]
                assert {source["name"] for source in sources if source} <= maps
                ports = {port["name"] for port in container.get("ports", [])}
                probes = [container.get(f"{which}Probe") for which in ("startup", "readiness", "liveness")]
                named = {probe["httpGet"]["port"] for probe in probes if probe and "httpGet" in probe}
                assert {port for port in named if isinstance(port, str)} <= ports
    labels = [
        item["spec"]["template"]["metadata"]["labels"]
        for item in objects
        if item["kind"] in ("Deployment", "StatefulSet", "Job")
    ]
    for service in of_kind(objects, "Service"):
        assert any(service["spec"]["selector"].items() <= found.items() for found in labels)
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [s for s in of_kind(objects, "Service") if wanted <= s["metadata"]["labels"].items()]
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("name", everything())
def test_settings_are_those_of_the_service(name):
    """Names and values of CTR_ variables in ConfigMaps; the service would refuse to start with others."""
    objects = rendered(name)
    for item in objects:
        for pod in pods_of(item):
            for container in containers_of(pod):
                variables = settings_of(objects, container)
                assert unknown_variables(variables) == []
                fields = {
                    key[4:].lower(): value for key, value in variables.items() if key.startswith("CTR_")
                }
                Settings(**fields)
                if any(key.startswith("CTR_") for key in variables):
                    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("name", [n for n in everything() if not n.startswith("jobs/")])
def test_a_pod_that_ends_has_time_to_drain(name):
    """preStop, the drain's pause, its time for requests, the margin before a kill: all below the grace."""
    objects = rendered(name)
    found = serving(objects)
    assert found is not None
    pod, container = found
    settings = {
        key: value for key, value in settings_of(objects, container).items() if key.startswith("CTR_")
    }
    pause, timeout = float(settings["CTR_DRAIN_PAUSE_S"]), float(settings["CTR_DRAIN_TIMEOUT_S"])
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] > float(seconds) + pause + timeout + KILL_MARGIN_S
    # Unready pods leave the Service only after their probe has failed often enough.
    probe = container["readinessProbe"]
    assert float(seconds) + pause >= probe["periodSeconds"] * probe["failureThreshold"]
    listening = int(settings["CTR_PORT"])
    assert listening in {port["containerPort"] for port in container["ports"]}


@pytest.mark.parametrize("name", [n for n in everything() if not n.startswith("jobs/")])
def test_probes_ask_paths_that_the_service_has(name):
    """Three different ones; and the start is checked by `ctr-serve check` with the very same settings."""
    paths = openapi_document(None)["paths"]
    found = serving(rendered(name))
    assert found is not None
    pod, container = found
    probes = [container[f"{which}Probe"]["httpGet"]["path"] for which in ("startup", "readiness", "liveness")]
    assert len(set(probes)) == 3
    assert set(probes) <= paths.keys()
    check = pod["initContainers"][-1]
    assert check["command"] == ["ctr-serve", "check"]
    assert check["envFrom"] == container["envFrom"]
    assert check["volumeMounts"] == container["volumeMounts"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_scales_and_scrapes_names_metrics_of_the_service(name):
    """The autoscaler's metric is a gauge of the service; /metrics is where it says."""
    gauges = {metric.name for metric in TABLE if metric.kind == "gauge"}
    objects = rendered(name)
    for item in of_kind(objects, "HorizontalPodAutoscaler"):
        for metric in item["spec"]["metrics"]:
            if metric["type"] == "Pods":
                assert metric["pods"]["metric"]["name"] in gauges
        assert item["spec"]["scaleTargetRef"]["name"] in {
            deployment["metadata"]["name"] for deployment in of_kind(objects, "Deployment")
        }
        assert all("replicas" not in deployment["spec"] for deployment in of_kind(objects, "Deployment"))


def test_the_routing_file_is_one():
    """An empty one sends every domain to the alias."""
    file = K8S / "base" / "routing.yaml"
    assert not parse_routing(file.read_bytes(), file).experiments


@pytest.mark.parametrize("name", everything())
def test_commands_exist_and_take_these_options(name):
    """Parsed by the very command lines that the containers run."""
    import export.cli
    import service.cli
    import training.cli

    programs = {"ctr-serve": service.cli, "ctr-train": training.cli, "ctr-export": export.cli}
    for item in rendered(name):
        for pod in pods_of(item):
            for container in containers_of(pod):
                command: list[str] = [*container.get("command", []), *container.get("args", [])]
                if command and command[0] == "torchrun":
                    command = ["ctr-train", *command[command.index("training.cli") + 1 :]]
                if command and command[0] in programs:
                    _parse(typer.main.get_command(programs[command[0]].app), command)


def _parse(command: Any, words: list[str]) -> None:
    """Walk down to the sub-command and parse its options without running it."""
    name, rest = words[0], words[1:]
    while hasattr(command, "get_command"):
        group = command.make_context(name, list(rest), resilient_parsing=True)
        found = command.get_command(group, rest[0])
        assert found is not None, f"{name} has no command {rest[0]}"
        command, name, rest = found, rest[0], rest[1:]
    try:
        command.make_context(name, list(rest))
    except USAGE_ERROR as error:
        raise AssertionError(f"{words}: {error.format_message()}") from None
