"""Files of docker/ and compose, held to their own linters."""

import itertools
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.engine import ROOT, run

DOCKERFILES = sorted(ROOT.glob("docker/**/*Dockerfile*"))
PROMETHEUS = ROOT / "docker" / "prometheus"
OVERRIDES = sorted(path.name for path in ROOT.glob("compose.*.yaml"))
BASE = yaml.safe_load((ROOT / "compose.yaml").read_text())
PROFILES = sorted({p for service in BASE["services"].values() for p in service.get("profiles", [])})


def every_choice(of):
    return [chosen for n in range(len(of) + 1) for chosen in itertools.combinations(of, n)]


def compose_file_image(service):
    return BASE["services"][service]["image"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(dockerfile):
    run([Path(sys.executable).parent / "hadolint", dockerfile])


@pytest.mark.parametrize("overrides", every_choice(OVERRIDES), ids="+".join)
@pytest.mark.parametrize("profiles", every_choice(PROFILES), ids="+".join)
def test_compose_takes_every_combination_of_files_and_profiles(engine, overrides, profiles):
    files = [word for name in ("compose.yaml", *overrides) for word in ("-f", ROOT / name)]
    chosen = [word for name in profiles for word in ("--profile", name)]
    run(["docker", "compose", *files, *chosen, "config", "--quiet"], env=engine.env)


def test_every_image_has_a_tag_that_says_a_version():
    tags = {name: service["image"].rpartition(":") for name, service in BASE["services"].items()}
    assert {name: tag for name, (image, _, tag) in tags.items() if not image or not tag[0].isdigit()} == {
        "prometheus": "v2.53.0"
    }


def promtool(engine, *words):
    return engine.docker(
        *("run", "--rm", "--entrypoint", "promtool", "--network", "none"),
        *("-v", f"{PROMETHEUS}/prometheus.yml:/etc/prometheus/prometheus.yml:ro"),
        *("-v", f"{PROMETHEUS}/rules:/etc/prometheus/rules:ro"),
        *("-v", f"{PROMETHEUS}/tests:/etc/prometheus/tests:ro"),
        *(compose_file_image("prometheus"), *words),
    )


def test_promtool_takes_configuration_and_rules(engine):
    assert "SUCCESS" in promtool(engine, "check", "config", "/etc/prometheus/prometheus.yml")


@pytest.mark.parametrize("path", sorted(PROMETHEUS.glob("tests/*.yaml")), ids=lambda path: path.stem)
def test_unit_tests_of_rules_pass(engine, path):
    assert "SUCCESS" in promtool(engine, "test", "rules", f"/etc/prometheus/tests/{path.name}")
