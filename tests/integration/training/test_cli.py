"""The command line: a whole line of commands, help, exit codes, one-line errors."""

import json
import subprocess
import sys

import pytest

from training import cli


def _call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ctr-train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


@pytest.fixture
def call(monkeypatch, capfd):
    def run(*arguments):
        code = _call(monkeypatch, *arguments)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def test_data_run_evaluate_report(call, small, tmp_path):
    code, out, _ = call("data", "prepare", "--data", small.raw, "--out", tmp_path / "p")
    assert code == 0
    assert "train 15,000, valid 2,500, test 2,500; 20 domains" in out
    code, out, _ = call("data", "describe", "--prepared", tmp_path / "p", "--domains")
    assert code == 0
    assert "domain_" in out or "15,000" in out
    run = tmp_path / "run"
    code, out, err = call(
        "run", "--config", small.config, "--data", small.raw, "--out", run, "--set", "training.epochs=1"
    )
    assert code == 0, err
    assert "domain_auc" in out
    assert "\x1b[" not in err  # no bars away from a terminal
    assert (run / "prepared" / "prepared.json").is_file()
    metrics = json.loads((run / "metrics.json").read_text())
    code, out, _ = call("evaluate", run, "--split", "valid", "--json")
    assert code == 0
    assert json.loads(out)["rows"] == metrics["valid"]["rows"]
    (run / "report.html").unlink()
    code, out, _ = call("report", run)
    assert code == 0
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    assert all(f"<td>{name}</td>" in page for name in metrics["test"]["domains"])


def test_synthetic_data_with_a_seed(call, tmp_path):
    code, out, _ = call("data", "synthetic", "--preset", "small", "--seed", "3", "--out", tmp_path / "s")
    assert code == 0
    assert "train 15,000" in out
    assert (tmp_path / "s" / "dataset.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run"], "Missing option"),
        (["nonsense"], "No such command"),
        (["evaluate", "x", "--split", "train"], "'train' is not one of valid, test"),
        (["data", "synthetic", "--preset", "huge", "--out", "x"], "'huge' is not one of small, demo"),
    ],
)
def test_a_wrong_command_line_is_code_2(call, arguments, text):
    code, _, err = call(*arguments)
    assert code == 2
    assert text in " ".join(err.replace("│", " ").split())


def test_expected_errors_are_code_1_and_one_line(call, small, finished, tmp_path):
    cases = [
        (["run", "--config", tmp_path / "no.yaml", "--out", tmp_path / "o"], "no.yaml: no such config file"),
        (["run", "--config", small.config, "--out", tmp_path / "o"], "no prepared data there; give --data"),
        (
            ["run", "--config", small.config, "--out", tmp_path / "o", "--set", "training.sed=1"],
            "unknown key training.sed; did you mean seed?",
        ),
        (
            ["run", "--config", small.config, "--out", tmp_path / "o", "--data", tmp_path],
            "dataset.yaml: not found",
        ),
        (["evaluate", tmp_path / "gone"], "gone: no such run folder"),
        (["report", tmp_path], "not a finished run"),
        (["data", "describe", "--prepared", tmp_path], "prepared.json: missing"),
        (
            ["run", "--config", small.config, "--prepared", small.prepared, "--out", finished.folder.root],
            "already holds a run",
        ),
    ]
    for arguments, text in cases:
        code, _, err = call(*arguments)
        assert (code, err.count("\n")) == (1, 1), err
        assert err.startswith("error: ")
        assert text in err


def test_an_interrupt_says_how_to_go_on(capfd):
    def interrupted():
        raise KeyboardInterrupt

    assert cli.guarded(interrupted) == 130
    assert "--resume" in capfd.readouterr().err


def test_a_bug_is_not_dressed_up():
    def bug():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.guarded(bug)


@pytest.mark.parametrize(
    "command", [[], ["run"], ["cluster"], ["evaluate"], ["report"], ["data"], ["data", "prepare"]]
)
def test_help_helps(call, command):
    code, out, _ = call(*command, "--help")
    assert code == 0
    assert "Usage:" in out


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "training.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "ctr-train" in done.stdout


def test_clusters_from_the_command_line(call, small, tmp_path):
    rules = "{num_clusters: 3, warmup_batches: 5, update_interval: 5, cluster_updates: 2, step_rows: 32}"
    config = tmp_path / "c.yaml"
    config.write_text(small.config.read_text() + f"clustering: {rules}\n")
    out = tmp_path / "clusters"
    arguments = ("cluster", "--config", config, "--prepared", small.prepared, "--out", out, "--set")
    code, text, err = call(*arguments, "clustering.min_eval_rows=50")
    assert code == 0, err
    assert "clusters" in text
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    code, _, err = call(*arguments, "clustering.min_eval_rows=50")
    assert (code, err.count("\n")) == (1, 1)
    assert "already holds a run" in err
    code, _, err = call(*arguments, "clustering.min_eval_rows=50", "--resume")
    assert code == 0, err
    run = tmp_path / "run"
    code, text, err = call(
        "run", "--config", config, "--prepared", small.prepared, "--out", run, "--set", "training.epochs=1",
        "--set", "model.towers=clusters", "--set", "clustering.version=two_stage",
        "--set", f"clustering.assignment={out}/assignment.json",
    )  # fmt: skip
    assert code == 0, err
    assert (run / "clusters" / "assignment.json").read_bytes() == (out / "assignment.json").read_bytes()
