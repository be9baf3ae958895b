"""Synthetic logs of any size keep their promises; configs that cannot are refused."""

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.synthetic import SMALL, brute_auc, small
from training.data.synthetic import (
    PRESETS,
    SyntheticConfig,
    build_world,
    generate,
    log_chunks,
)
from training.data.synthetic_truth import ReachableSums, split_rows


def test_log_is_written_in_row_groups_with_progress(tmp_path: Path) -> None:
    """No row group exceeds the limit and each is reported."""
    calls: list[tuple[int, int]] = []
    written = generate(small(row_group_rows=1_000), tmp_path, lambda done, total: calls.append((done, total)))
    meta = pq.read_metadata(tmp_path / "interactions.parquet")
    groups = [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]

    assert written.num_row_groups == len(groups) == 24
    assert max(groups) == 1_000
    assert np.cumsum(groups).tolist() == [done for done, _ in calls]
    assert {total for _, total in calls} == {SMALL.num_rows}
    assert pl.read_parquet(tmp_path / "interactions.parquet")["time_ms"].is_sorted()


def test_memory_does_not_grow_with_rows() -> None:
    """Ten times the rows in chunks of the same size: the peak of the log stays within a tenth."""
    peaks = []
    for num_rows in (20_000, 200_000):
        config = small(num_rows=num_rows, row_group_rows=1_024)
        world = build_world(config)
        tracemalloc.start()
        rows = sum(len(chunk.label) for chunk in log_chunks(config, world, np.random.default_rng(0)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert rows == num_rows

    assert peaks[1] < 1.1 * peaks[0]


def test_a_broken_run_leaves_no_dataset(tmp_path: Path) -> None:
    """The description comes last: an interrupted rewrite is not taken for a data set."""
    generate(SMALL, tmp_path)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, tmp_path, stop)
    assert not (tmp_path / "dataset.yaml").exists()


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_domains=st.integers(2, 40),
    num_rows=st.integers(1_000, 5_000),
    days=st.integers(3, 30),
    zipf=st.floats(0, 1),
    row_group_rows=st.integers(256, 2_000),
    drift=st.sampled_from([0.0, 2.0]),
)
def test_any_log_keeps_its_promises(
    seed: int, num_domains: int, num_rows: int, days: int, zipf: float, row_group_rows: int, drift: float
) -> None:
    """Exact domain totals, rising time, valid codes and probabilities, for all sizes."""
    config = SyntheticConfig(
        seed=seed, num_domains=num_domains, num_groups=2, opposite_pairs=1, num_users=30, num_items=20,
        num_rows=num_rows, days=days, domain_zipf=zipf, num_tail_domains=1, tail_rows=2, drift=drift,
        row_group_rows=row_group_rows,
    )  # fmt: skip
    world = build_world(config)
    chunks = list(log_chunks(config, world, np.random.default_rng(seed)))
    domain = np.concatenate([chunk.rows.domain for chunk in chunks])
    time_ms = np.concatenate([chunk.time_ms for chunk in chunks])
    chance = np.concatenate([chunk.probability for chunk in chunks])

    assert np.bincount(domain, minlength=num_domains).tolist() == config.domain_rows().tolist()
    assert (np.diff(time_ms) >= 0).all()
    assert ((chance > 0) & (chance < 1)).all()
    assert all(len(chunk.label) <= row_group_rows for chunk in chunks)
    assert [a.split <= b.split for a, b in pairwise(chunks)] == [True] * (len(chunks) - 1)
    assert all((chunk.rows.user < 30).all() and (chunk.rows.item < 20).all() for chunk in chunks)
    assert all(((chunk.rows.hour >= 0) & (chunk.rows.hour < 24)).all() for chunk in chunks)


@given(st.integers(1_000, 10**7), st.integers(1, 300), st.integers(0, 5), st.floats(0, 3))
def test_split_rows_uses_every_row(num_rows: int, head: int, tail: int, exponent: float) -> None:
    rows = split_rows(num_rows, head, tail, exponent=exponent, tail_rows=7)

    assert rows.sum() == num_rows
    assert (np.diff(rows[:head]) <= 0).all()
    assert rows[head:].tolist() == [7] * tail


def test_split_rows_by_hand() -> None:
    """1000 rows, two tail domains of 100: 800 rows go 1 : 1/2 : 1/3, that is 436.4, 218.2 and 145.5."""
    assert split_rows(1_000, 3, 2, exponent=1.0, tail_rows=100).tolist() == [437, 218, 145, 100, 100]


def test_reachable_sums_by_hand() -> None:
    """Domain 0 orders 3 of 4 pairs rightly, domain 1 ties its only pair, domain 2 has no click."""
    sums = ReachableSums(3)
    domain = np.array([0, 0, 0, 0, 1, 1, 2])
    label = np.array([1, 0, 1, 0, 1, 0, 0])
    logit = np.array([2.0, 1.0, 0.0, -1.0, 0.5, 0.5, -2.0])
    sums.add(domain[:3], label[:3], logit[:3])
    sums.add(domain[3:], label[3:], logit[3:])
    figures = sums.value()
    chance = 1 / (1 + np.exp(-logit))

    assert figures["domain_auc"] == pytest.approx((4 * 0.75 + 2 * 0.5) / 6)
    assert figures["total_auc"] == pytest.approx(brute_auc(label, logit))
    assert figures["skipped_domains"] == 1
    assert figures["logloss"] == pytest.approx(-np.log(np.where(label == 1, chance, 1 - chance)).mean())


def test_reachable_sums_without_rows_are_unknown() -> None:
    unknown = {"total_auc": None, "domain_auc": None, "logloss": None, "skipped_domains": 2}

    assert ReachableSums(2).value() == unknown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opposite_pairs": 3}, r"opposite_pairs is 3; at most num_groups // 2 = 2 allowed"),
        ({"num_groups": 21, "num_latents": 30}, r"num_groups is 21; at most num_domains = 20 allowed"),
        ({"num_tail_domains": 20}, r"num_tail_domains is 20; at most num_domains - 1 = 19 allowed"),
        ({"num_latents": 3}, r"num_latents is 3; at least 1 \+ num_groups - opposite_pairs = 4 needed"),
        ({"num_rows": 1_000}, r"num_rows is 1000; that leaves 14 for the smallest .*, at least 60 needed"),
        ({"num_rows": 99}, r"num_rows\n.*greater than or equal to 1000.*input_value=99"),
        ({"days": 2}, r"days\n.*greater than or equal to 3.*input_value=2"),
        ({"base_click_rate": 1.0}, r"base_click_rate\n.*less than 1 .*input_value=1.0"),
        ({"drift": float("nan")}, r"drift\n.*finite number"),
        ({"num_domain": 3}, r"num_domain\n.*Extra inputs are not permitted"),
    ],
)
def test_impossible_configs_are_refused_with_field_value_and_limit(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        small(**changes)


def test_config_is_frozen_and_every_field_explained() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SMALL.seed = 1
    assert all(field.description for field in SyntheticConfig.model_fields.values())


def test_demo_preset_is_what_its_page_says() -> None:
    demo = PRESETS["demo"]
    sizes = (demo.num_domains, demo.num_groups, demo.num_rows, demo.num_users, demo.num_items)

    assert sizes == (60, 6, 250_000, 5_000, 3_000)
