"""The run log and the progress bars."""

import io
import json
import math

from rich.console import Console

from training.track import RunLog, bars, read_log


def test_the_log_holds_one_object_a_line_and_nan_as_null(tmp_path):
    with RunLog(tmp_path / "deep" / "log.jsonl") as log:
        log.event("train", step=1, loss=0.5)
        log.event("evaluate", auc=math.nan)
    lines = (tmp_path / "deep" / "log.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert (first["event"], first["step"], first["loss"]) == ("train", 1, 0.5)
    assert first["time_s"] > 1.6e9
    assert second["auc"] is None


def test_a_resumed_log_forgets_what_the_checkpoint_does_not_know(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.event("a")
        known = log.sync()
        log.event("b")
    with RunLog(path, keep=True) as log:
        log.truncate(known)
        log.event("c")
    assert [e["event"] for e in read_log(path)] == ["a", "c"]
    with RunLog(path) as log:
        log.event("d")
    assert [e["event"] for e in read_log(path)] == ["d"]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b')
    assert [e["event"] for e in read_log(path)] == ["a"]


def _drawn(*, terminal):
    text = io.StringIO()
    with bars(Console(file=text, force_terminal=terminal, width=100)) as watcher:
        watcher.start("train", 10)
        watcher.advance(3, note="loss 0.5")
        watcher.reach("scan", 1, 2)
        watcher.reach("scan", 2, 2)
        watcher.say("epoch done")
    return text.getvalue()


def test_bars_are_drawn_on_a_terminal_only():
    assert "scan" in _drawn(terminal=True)
    assert _drawn(terminal=False) == "epoch done\n"
