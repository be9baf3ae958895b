"""Counts as of a period, against a plain loop."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data.asof import END, CountBuilder

rows = st.lists(st.tuples(st.integers(-1, 4), st.integers(-3, 5), st.integers(0, 1)), min_size=0, max_size=40)


def _built(records, pieces=1):
    builder = CountBuilder(2)
    for part in np.array_split(np.array(records, dtype=np.int64).reshape(-1, 3), pieces):
        builder.add(
            part[:, 0], part[:, 1], np.stack([np.ones(len(part), dtype=np.int64), part[:, 2]], axis=1)
        )
    return builder.build()


@given(records=rows, pieces=st.integers(1, 4), code=st.integers(-1, 6), period=st.integers(-5, 7))
def test_before_is_the_sum_over_strictly_earlier_periods(records, pieces, code, period):
    earlier = [r for r in records if r[0] == code and r[1] < period and code >= 0]

    found = _built(records, pieces).before(np.array([code]), np.array([period]))

    assert found.tolist() == [[len(earlier), sum(r[2] for r in earlier)]]


@given(records=rows)
def test_the_end_counts_everything(records):
    counts = _built(records)
    codes = sorted({r[0] for r in records if r[0] >= 0})

    assert counts.codes.tolist() == codes
    assert counts.totals()[:, 0].tolist() == [sum(r[0] == c for r in records) for c in codes]
    assert counts.before(np.array([99]), np.array([END])).tolist() == [[0, 0]]


def test_merging_midway_changes_nothing(monkeypatch):
    records = [(i % 7, i % 5, i % 2) for i in range(300)]
    whole = _built(records)
    monkeypatch.setattr("training.data.asof._MERGE_ROWS", 3)

    pieces = _built(records, 50)

    assert np.array_equal(whole.own, pieces.own)
    assert np.array_equal(whole.entry_codes, pieces.entry_codes)
