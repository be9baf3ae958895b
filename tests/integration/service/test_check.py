"""`ctr-serve check` for CI and init containers: exit codes, one JSON object, everything in one run."""

import json
import os
import subprocess
import sys

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from service.cli import app as command
from tests.support.bundles import build_bundle
from tests.support.process import free_port
from tests.support.routing import experiment, write_routing
from tests.support.tokens import TOKEN, write_tokens


def run(*options, **variables):
    """Exit code and the JSON object of a check in this process."""
    with capture_logs():  # the console script sends them to stderr
        done = CliRunner().invoke(command, ["check", "--json", *options], env=variables)
    whole = json.loads(done.stdout)
    assert whole["ok"] == (done.exit_code == 0)
    return done.exit_code, {found["check"]: found for found in whole["checks"]}


def unfit(found):
    return {name: check["detail"] for name, check in found.items() if not check["ok"]}


def test_a_fit_setup_is_told_with_everything_that_was_checked(small, tmp_path):
    build_bundle(small.store, alias="canary", seed=10)
    routing = write_routing(tmp_path / "routing.yaml", experiment())
    code, found = run(
        *(
            "--store",
            str(small.store),
            "--routing",
            str(routing),
            "--tokens-file",
            str(write_tokens(tmp_path)),
        ),
        CTR_EXPOSURE_DIR=str(tmp_path / "exposures"),
    )
    assert code == 0, unfit(found)
    assert list(found) == ["settings", "folders", "tokens_file", "bundle", "routing"]
    assert found["bundle"]["detail"].startswith(
        f"small {small.bundle.bundle_id}: verified, golden rows within"
    )
    assert found["tokens_file"]["detail"].endswith("tokens: 1 tokens")
    assert "exposures can be written to" in found["folders"]["detail"]
    assert "3 domains" in found["routing"]["detail"]
    assert TOKEN not in str(found)


def test_everything_that_is_unfit_is_told_in_one_run(tmp_path):
    (tmp_path / "tokens").write_text("short\n")
    (tmp_path / "file").write_text("")
    routing = write_routing(tmp_path / "routing.yaml", experiment())
    code, found = run(
        *("--store", str(tmp_path), "--routing", str(routing), "--tokens-file", str(tmp_path / "tokens")),
        CTR_FEEDBACK_DIR=str(tmp_path / "file"),
    )
    wrong = unfit(found)
    assert code == 1
    assert set(wrong) == {"folders", "tokens_file", "bundle", "routing"}
    assert "line 1: a token of 5 characters" in wrong["tokens_file"]
    assert "has no bundle 'stable'" in wrong["bundle"]
    assert wrong["routing"] == "not checked, since there is no default bundle to route to"
    assert "feedback_dir" in wrong["folders"]


def test_a_bundle_that_an_arm_names_must_be_there(small, tmp_path):
    arms = [{"name": "control", "share": 0.5}, {"name": "treatment", "share": 0.5, "bundle": "nowhere"}]
    routing = write_routing(tmp_path / "routing.yaml", experiment(arms=arms))
    code, found = run("--store", str(small.store), "--routing", str(routing))
    assert code == 1
    assert "has no bundle 'nowhere'" in unfit(found)["routing"]


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        ((), {"CTR_PROT": "1"}, "unknown variables CTR_PROT; the settings are access_log_ratio, "),
        (
            ("--device", "abacus"),
            {},
            "setting device: Input should be 'auto', 'cpu', 'cuda' or 'tensorrt', got 'abacus'",
        ),
        (
            ("--redis-url", "http://u:geheim@x"),
            {},
            "setting redis_url: Value error, must start with redis://",
        ),
        ((), {"CTR_BREAKER_WINDOW": "1"}, "breaker_window (1) must be at least breaker_failures (5)"),
    ],
)
def test_settings_that_cannot_be_read_are_exit_code_2(options, variables, message):
    code, found = run(*options, **variables)
    assert code == 2
    assert list(found) == ["settings"]
    assert message in unfit(found)["settings"]
    assert "geheim" not in str(found)


def test_a_service_does_not_start_without_the_tokens_it_was_told_to_use(tmp_path):
    done = CliRunner().invoke(command, ["run", "--tokens-file", str(tmp_path / "nowhere"), "--port", "0"])
    assert done.exit_code == 1
    assert "nowhere: cannot be read (No such file or directory)" in done.output


def test_redis_is_asked_only_with_connect(small, server):
    options = ("--store", str(small.store), "--feature-source", "redis", "--redis-url")
    code, found = run(*options, server.url, "--connect")
    assert (code, found["features"]["detail"]) == (0, "Redis answers")
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    assert run(*options, nobody)[0] == 0
    code, found = run(*options, nobody, "--connect")
    assert code == 1
    assert unfit(found) == {"features": "Redis does not answer; a service would start all the same, degraded"}


def test_as_a_process_it_prints_tables_or_nothing_but_json(small):
    def process(*options, **variables):
        line = [sys.executable, "-m", "service.cli", "check", "--store", str(small.store), *options]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CTR_")} | variables
        return subprocess.run(line, capture_output=True, text=True, env=environment)

    tables, whole = process(), process("--json")
    assert (tables.returncode, whole.returncode) == (0, 0)
    assert "cluster-1" in tables.stdout
    assert "settings: all are known and in range" in tables.stdout
    assert json.loads(whole.stdout)["ok"] is True
    typo = process(CTR_PROT="1")
    assert (typo.returncode, typo.stdout) == (2, "")
    assert "ctr-serve: unknown variables CTR_PROT" in typo.stderr
