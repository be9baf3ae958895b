"""The penalty of open gates that a scan takes."""

from typer import Typer
from typer.testing import CliRunner

from tests.support.hier import CONFIG, write_raw
from training.hier.gate_scan import PENALTIES, Trial, choose, main


def trial(penalty, ndcg):
    return Trial(penalty, ndcg, step=100, open_share=0.5)


def test_the_largest_penalty_within_the_tolerance_is_taken():
    trials = [trial(0.0, 0.301), trial(1e-4, 0.302), trial(1e-3, 0.3001), trial(1e-2, 0.2999)]
    assert choose(trials).penalty == 1e-3
    assert choose(trials[:1]).penalty == 0.0


def test_a_scan_pretrains_with_each_penalty_and_says_which_to_take(tmp_path):
    (tmp_path / "raw").mkdir()
    raw, config = write_raw(tmp_path / "raw"), tmp_path / "hier.yaml"
    config.write_text(CONFIG)
    command = Typer()
    command.command()(main)
    told = CliRunner().invoke(
        command, ["--config", str(config), "--data", str(raw), "--out", str(tmp_path), "--set", "hold_out=d1"]
    )
    assert told.exit_code == 0, told.output
    lines = told.output.strip().splitlines()
    assert [float(line.split()[0]) for line in lines[1:-1]] == list(PENALTIES)
    assert float(lines[-1].removeprefix("take ")) in PENALTIES
