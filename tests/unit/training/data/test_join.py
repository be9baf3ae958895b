"""Joining exposures and feedback: every rule by hand, on files that the service's own sink wrote."""

import json

import msgspec
import polars as pl
import pytest

from service.contract.events import EXPOSURES, FEEDBACK, ExposureRecord, FeedbackRecord, Outcome
from service.telemetry.segments import SegmentFiles
from training.ab.analyse import analyse
from training.cli import app, guarded
from training.data.errors import DescriptionError, TableError
from training.data.join import join, parse_window
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.source import open_data

MINUTE = 60_000
T = 1_790_000_000_000
WINDOW = 30 * MINUTE


def shown(request_id, minute=0, items=("a", "b"), **more):
    given = {
        "request_id": request_id,
        "time_ms": T + minute * MINUTE,
        "domain": "home",
        "user": "u1",
        "bundle": "f00",
        "graph": "whole",
        "items": list(items),
        "scores": [round(0.1 * (n + 1), 1) for n in range(len(items))],
    }
    return ExposureRecord(**(given | more))


def told(request_id, minute, *items):
    return FeedbackRecord(request_id, T + minute * MINUTE, list(items))


def clicked(item, minute=None, click=1, value=None):
    return Outcome(item, click, value, None if minute is None else T + minute * MINUTE)


def write(folder, kind, records, *, closed=True):
    sink = SegmentFiles(folder / kind, kind, max_bytes=400, max_age_s=1000.0)
    for record in records:
        sink.append([msgspec.json.encode(record) + b"\n"])
    if closed:
        sink.close()
    return folder / kind


def joined(folder, exposures, feedback, **options):
    e, f = write(folder, EXPOSURES, exposures), write(folder, FEEDBACK, feedback)
    summary = join(e, f, folder / "out", window_ms=WINDOW, **options)
    return summary, pl.read_parquet(folder / "out" / "rows.parquet")


END = told("nobody", 1000, clicked("z"))
"""A late last record, so that every window is over."""


def labels(rows):
    return {(r, i): label for r, i, label in rows.select("request_id", "item", "label").iter_rows()}


def test_clicks_within_the_window_are_labels(tmp_path):
    summary, rows = joined(
        tmp_path,
        [shown("r1", items=("a", "b", "c", "d"), context={"hour": 7}), shown("r2", 5, items=("a",))],
        [
            told("r1", 10, clicked("a", 9), clicked("b", 30), clicked("c", 31)),
            told("r1", 60, clicked("d")),
            END,
        ],
    )
    assert labels(rows) == {("r1", "a"): 1, ("r1", "b"): 1, ("r1", "c"): 1, ("r1", "d"): 0, ("r2", "a"): 0}
    delays = dict(rows.filter(pl.col("request_id") == "r1").select("item", "click_delay_ms").iter_rows())
    # b and c say 30 and 31 minutes but were received at 10: the receipt bounds the time
    assert delays == {"a": 9 * MINUTE, "b": 10 * MINUTE, "c": 10 * MINUTE, "d": None}
    assert (summary.rows, summary.clicks, summary.requests, summary.outcomes) == (5, 3, 2, 5)
    assert (summary.late_outcomes, summary.unmatched_outcomes, summary.open_requests) == (1, 1, 0)
    first = rows.row(0, named=True)
    assert first["score"] == pytest.approx(0.1)
    assert (first["position"], first["bundle"], first["user"], first["context_hour"]) == (0, "f00", "u1", 7)
    assert (first["experiment"], first["arm"], first["time_ms"]) == (None, None, T)


def test_the_window_ends_at_its_last_ms(tmp_path):
    edge = Outcome("a", 1, None, T + WINDOW), Outcome("b", 1, None, T + WINDOW + 1)
    summary, rows = joined(tmp_path, [shown("r1")], [told("r1", 100, *edge), END])
    assert labels(rows) == {("r1", "a"): 1, ("r1", "b"): 0}
    assert summary.late_outcomes == 1


def test_repeated_and_contradicting_outcomes(tmp_path):
    summary, rows = joined(
        tmp_path,
        [shown("r1", items=("a", "b", "c"))],
        [
            told("r1", 1, clicked("a", value=1.0), clicked("b", click=0)),
            told("r1", 1, clicked("a", value=1.0), clicked("b", click=0)),
            told("r1", 5, clicked("b", value=7.0), clicked("a", click=0, value=2.0)),
            told("r1", 6, clicked("a")),
            told("r1", 0, Outcome("c", 1, 3.0, T - 5 * MINUTE)),
            END,
        ],
    )
    assert labels(rows) == {("r1", "a"): 1, ("r1", "b"): 1, ("r1", "c"): 1}
    values = {
        item: (value, delay)
        for item, value, delay in rows.select("item", "value", "click_delay_ms").iter_rows()
    }
    assert values == {"a": (2.0, MINUTE), "b": (7.0, 5 * MINUTE), "c": (3.0, 0)}
    assert summary.rows == 3


def test_repeated_exposures_and_items_count_once_the_earliest(tmp_path):
    summary, rows = joined(
        tmp_path,
        [shown("r1", 2, items=("x",)), shown("r1", 0, items=("a", "b", "a")), shown("r1", 1, items=("y",))],
        [told("r1", 3, clicked("a"), clicked("x")), END],
    )
    assert rows.select("item", "position", "label").rows() == [("a", 0, 1), ("b", 1, 0)]
    assert (summary.requests, summary.repeated_requests, summary.unmatched_outcomes) == (3, 2, 2)


def test_requests_with_an_open_window_wait_for_the_next_join(tmp_path):
    summary, rows = joined(
        tmp_path, [shown("old"), shown("edge", 1), shown("new", 2)], [told("new", 31, clicked("a"))]
    )
    assert set(rows["request_id"]) == {"old", "edge"}
    assert (summary.open_requests, summary.until_ms) == (1, T + 31 * MINUTE)


def test_items_that_nobody_spoke_of_can_be_dropped(tmp_path):
    feedback = [told("r1", 1, clicked("a"), clicked("b", click=0)), END]
    summary, rows = joined(tmp_path, [shown("r1", items=("a", "b", "c"))], feedback, unreported="drop")
    assert labels(rows) == {("r1", "a"): 1, ("r1", "b"): 0}
    assert summary.rows == 2


def test_context_columns_take_the_type_all_values_share(tmp_path):
    contexts = [
        {"hour": 7, "ratio": 1, "mixed": 1, "flag": True, "list": [1], "none": None, "text": "x"},
        {"hour": 8, "ratio": 0.5, "mixed": "one", "flag": False},
    ]
    exposures = [shown(f"r{n}", items=("a",), context=context) for n, context in enumerate(contexts)]
    _, rows = joined(tmp_path, exposures, [END])
    kinds = {name: kind for name, kind in rows.schema.items() if name.startswith("context_")}
    assert kinds == {
        "context_flag": pl.Boolean,
        "context_hour": pl.Int64,
        "context_mixed": pl.String,
        "context_ratio": pl.Float64,
        "context_text": pl.String,
    }
    assert rows["context_mixed"].to_list() == ["1", "one"]
    assert rows["context_text"].to_list() == ["x", None]


def test_what_was_acknowledged_in_an_open_segment_counts_and_a_torn_line_does_not(tmp_path):
    exposures = write(tmp_path, EXPOSURES, [shown("r1")])
    feedback = write(tmp_path, FEEDBACK, [told("r1", 1, clicked("a"))], closed=False)
    (open_segment,) = feedback.iterdir()
    with open_segment.open("ab") as torn:
        torn.write(b'{"request_id":"r1"')
    (feedback / "feedback-99990101-x-1-1.jsonl").write_bytes(msgspec.json.encode(END) + b"\n")
    summary = join(exposures, feedback, tmp_path / "out", window_ms=WINDOW)
    assert (summary.clicks, summary.torn_lines) == (1, 1)


def many(folder):
    """200 requests of 4 items over 200 minutes, two arms, one override."""
    exposures, feedback = [], []
    for n in range(200):
        arm = "control" if n % 2 else "treatment"
        drawn = {"experiment": "e", "arm": arm, "unit": f"u{n % 20}", "reason": "hash" if n else "override"}
        request = shown(
            f"r{n}", n, items=("a", "b", "c", "d"), user=f"u{n % 20}", domain=f"d{n % 3}", **drawn
        )
        exposures.append(request)
        feedback.append(told(f"r{n}", n + 1, clicked("a"), *([clicked("b")] if n % 4 == 0 else [])))
    return exposures, [*feedback, END]


def test_the_description_is_read_described_prepared_and_analysed(tmp_path, capsys):
    exposures, feedback = many(tmp_path)
    e, f = write(tmp_path, EXPOSURES, exposures), write(tmp_path, FEEDBACK, feedback)
    out = tmp_path / "joined rows"
    line = ["data", "join", "--exposures", str(e), "--feedback", str(f), "--out", str(out), "--window", "30m"]
    assert guarded(lambda: app(line, standalone_mode=False)) == 0
    assert "800 rows, 250 clicks of 200 requests" in " ".join(capsys.readouterr().out.split())
    assert json.loads((out / "join.json").read_text())["clicks"] == 250
    assert sorted(path.name for path in out.iterdir()) == ["dataset.yaml", "join.json", "rows.parquet"]

    assert guarded(lambda: app(["data", "describe", "--data", str(out)], standalone_mode=False)) == 0
    said = capsys.readouterr().out
    assert "name: joined_rows" in said
    assert "rows: 800" in said
    prepare(open_data(out), tmp_path / "prepared")
    assert (
        sum(sum(r.values()) for r in PreparedDataset.open(tmp_path / "prepared").domain_rows.values()) == 800
    )

    analysis = analyse(out)
    # the override, request 0, is left out: 99 treatment requests with 4 items, 49 of them with two clicks
    treatment = analysis.arms[1]
    assert (treatment.rows, treatment.clicks, treatment.units) == (396, 148, 10)
    assert analysis.arms[0].ctr == 0.25


@pytest.mark.parametrize(
    ("text", "ms"), [("45s", 45_000), ("30m", 1_800_000), ("2h", 7_200_000), ("1d", 86_400_000)]
)
def test_windows(text, ms):
    assert parse_window(text) == ms


@pytest.mark.parametrize("text", ["30", "m", "0m", "1.5h", "-1m"])
def test_wrong_windows_are_refused(text):
    with pytest.raises(DescriptionError, match=f"window: '{text}'; allowed: a whole number and a unit"):
        parse_window(text)


def test_what_cannot_be_joined_is_refused(tmp_path):
    e = write(tmp_path, EXPOSURES, [shown("r1")])
    with pytest.raises(TableError, match=r"no feedback-\*.jsonl file there"):
        join(e, tmp_path, tmp_path / "out", window_ms=WINDOW)
    f = write(tmp_path, FEEDBACK, [told("r1", 1, clicked("a"))])
    with pytest.raises(TableError, match="no rows: no exposure has an attribution window of 1800000 ms"):
        join(e, f, tmp_path / "out", window_ms=WINDOW)
    join(e, f, tmp_path / "out", window_ms=MINUTE)
    with pytest.raises(TableError, match="holds joined rows already; give a new folder"):
        join(e, f, tmp_path / "out", window_ms=MINUTE)
    bad = tmp_path / "feedback" / "feedback-2.jsonl"
    bad.write_bytes(b'{"request_id": 3}\n')
    with pytest.raises(TableError, match=r"feedback-2.jsonl: line 1 is no feedback record: Expected `str`"):
        join(e, f, tmp_path / "other", window_ms=MINUTE)
    assert not (tmp_path / "other" / ".work").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "exposures-1.jsonl").write_bytes(b"")
    bad.unlink()
    with pytest.raises(TableError, match="the exposure files are empty"):
        join(empty, f, tmp_path / "other", window_ms=MINUTE)
    line = ["data", "join", "--exposures", "e", "--feedback", "f", "--out", "o", "--unreported", "maybe"]
    assert guarded(lambda: app(line, standalone_mode=False)) == 2
    assert guarded(lambda: app(["data", "describe"], standalone_mode=False)) == 2
