"""Replaying records: figures by hand, every reason for leaving one out, rank correlations."""

import asyncio
import math

import msgspec
import numpy as np
import pytest

from service.api.expose import rows_digest
from service.bundles.registry import LoadedBundle
from service.contract.events import ExposureRecord
from service.contract.store import ModelStore
from service.errors import GraphRunError, ReplayError
from service.replay import REASONS, Replay, exposure_files, lines_of, query_of, rank_correlation
from service.scoring.admission import Deadline
from service.scoring.runner import Runner
from service.scoring.scorer import Scorer

MAX_ITEMS = 5


@pytest.fixture(scope="module")
def scorer(small):
    runner = Runner(inline_max_ms=math.inf, num_threads=1)
    yield Scorer(LoadedBundle.load(ModelStore(small.store), "stable"), runner, max_items=MAX_ITEMS)
    runner.close()


def record(**changes):
    given = {
        "request_id": "r",
        "time_ms": 1,
        "domain": "home",
        "user": "u3",
        "bundle": "b",
        "graph": "whole",
        "items": ["i1", "i2"],
        "scores": [0.5, 0.5],
    }
    return ExposureRecord(**{**given, **changes})


def replay(scorer, *lines, **options):
    again = Replay(scorer, max_items=MAX_ITEMS, **options)

    async def whole():
        for line in lines:
            await again.line(line if isinstance(line, bytes) else msgspec.json.encode(line) + b"\n")

    asyncio.run(whole())
    return again.result


def test_differences_by_domain_and_arm_are_those_of_the_formula(scorer, small):
    now = small.expected_stored("home", 3, [1, 2])
    moved = record(scores=[float(now[0]) + 0.1, float(now[1]) - 0.3])
    exact = record(scores=now.tolist(), experiment="ab", arm="b", unit="u3", reason="hash")
    result = replay(scorer, moved, exact, exact)
    rows = {(row["domain"], row["arm"]): row for row in result.rows()}

    assert rows[("home", "none")]["requests"] == 1
    assert rows[("home", "none")]["mean_abs_difference"] == pytest.approx(0.2, abs=1e-6)
    assert rows[("home", "none")]["max_abs_difference"] == pytest.approx(0.3, abs=1e-6)
    order = 1.0 if (now[0] + 0.1 > now[1] - 0.3) == (now[0] > now[1]) else -1.0
    assert rows[("home", "none")]["mean_rank_correlation"] == pytest.approx(order)
    assert rows[("home", "ab/b")]["requests"] == 2
    assert rows[("home", "ab/b")]["items"] == 4
    assert rows[("home", "ab/b")]["max_abs_difference"] == pytest.approx(0, abs=1e-6)
    assert (result.requests, result.max_difference) == (3, pytest.approx(0.3, abs=1e-6))
    assert not result.left_out


def test_equal_encoded_rows_are_told_by_their_digest(scorer):
    scored = asyncio.run(scorer.score(query_of(record()), Deadline(1000)))
    same = record(features=rows_digest(scored))
    result = replay(scorer, same, record(features="0" * 16), same_features_only=False)
    assert (result.requests, result.rows()[0]["same_features"]) == (2, 1)
    strict = replay(scorer, same, record(features="0" * 16), same_features_only=True)
    assert (strict.requests, strict.left_out) == (1, {"features_changed": 1})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"request_id":"r","ti', "torn"),
        (b"{}\n", "unreadable"),
        (b"\xff\n", "unreadable"),
        (b"[" * 100_000 + b"\n", "unreadable"),
        (record(scores=[0.5]), "unreadable"),
        (record(items=[], scores=[]), "unreadable"),
        (record(degraded=["user_features"]), "degraded"),
        (record(items=["i"] * 6, scores=[0.5] * 6), "too_many_items"),
        (record(domain="tab_9"), "unknown_domain"),
        (record(context={"colour": 1}), "invalid"),
    ],
)
def test_what_cannot_be_replayed_is_counted_by_reason(scorer, line, reason):
    result = replay(scorer, line)
    assert (result.requests, result.left_out) == (0, {reason: 1})
    assert reason in REASONS
    assert (result.rows(), result.max_difference) == ([], 0.0)


def test_a_graph_that_fails_is_a_reason_too(small):
    runner = Runner(inline_max_ms=math.inf, num_threads=1)
    broken = Scorer(LoadedBundle.load(ModelStore(small.store), "stable"), runner, max_items=MAX_ITEMS)

    def fail(rows):
        raise GraphRunError("broken")

    for predictor in broken.loaded.predictors.values():
        predictor.score = fail
    assert replay(broken, record()).left_out == {"failed": 1}
    runner.close()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.1, 0.2, 0.3], [0.2, 0.5, 0.9], 1.0),
        ([0.1, 0.2, 0.3], [0.9, 0.5, 0.2], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),  # 1 - 6 * (1 + 1) / (4 * 15)
        ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),  # ranks 1.5 1.5 3 against 1 2 3: 1.5 / sqrt(1.5 * 2)
        ([1, 1], [1, 2], None),
        ([1], [2], None),
    ],
)
def test_rank_correlation_by_hand(first, second, expected):
    found = rank_correlation(np.array(first, float), np.array(second, float))
    assert found == (None if expected is None else pytest.approx(expected))


def test_files_of_a_folder_come_by_name_and_none_is_an_error(tmp_path):
    with pytest.raises(ReplayError, match=r"no exposures-\*\.jsonl file there"):
        exposure_files(tmp_path)
    for name in ("exposures-2.jsonl", "exposures-1.jsonl", "exposures-3.jsonl.open", "feedback-1.jsonl"):
        (tmp_path / name).write_text(f"{name}\n")
    found = exposure_files(tmp_path)
    assert [path.name for path in found] == [
        "exposures-1.jsonl",
        "exposures-2.jsonl",
        "exposures-3.jsonl.open",
    ]
    assert list(lines_of(found[:2])) == [b"exposures-1.jsonl\n", b"exposures-2.jsonl\n"]
    assert exposure_files(found[2]) == [found[2]]
