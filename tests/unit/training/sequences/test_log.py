"""Event logs: order, what is held out, and what has no row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.unit.training.sequences.toy import random_log
from training.sequences.batches import TrainBatches, train_windows
from training.sequences.errors import SequenceError
from training.sequences.log import EventColumns, EventLog, log_of_arrays, read_log

COLUMNS = EventColumns("user", "item", "domain", "order", "time")


def events() -> pl.DataFrame:
    """Users u (six events) and v (two), not in order."""
    return pl.DataFrame(
        {
            "user": ["u", "v", "u", "u", "u", "u", "v", "u"],
            "item": ["i3", "j1", "i1", "i2", "i1", "i4", "j2", "i9"],
            "domain": [0, 1, 0, 1, 0, 1, 1, 0],
            "order": [2, 0, 0, 1, 3, 4, 1, 5],
            "time": [12, 7, 10, 11, 13, 14, 8, 15],
        }
    )


def read(folder: Path, table: pl.DataFrame, **choices: object) -> EventLog:
    """The log of a table."""
    path = folder / "events.parquet"
    table.write_parquet(path)
    return read_log(path, COLUMNS, num_valid=1, num_test=1, **choices)  # type: ignore[arg-type]


def test_events_are_sorted_and_the_newest_are_held_out(tmp_path: Path) -> None:
    """u: i1 i2 i3 i1 train, i4 validation, i9 test; v has too few events, so all of them train."""
    log = read(tmp_path, events())

    assert log.users == ("u", "v")
    assert log.items == ("i1", "i2", "i3", "j1", "j2")
    assert log.item.tolist() == [2, 3, 4, 2, 1, 1, 5, 6]  # i4 and i9 were never met in training
    assert log.time.tolist() == [10, 11, 12, 13, 14, 15, 7, 8]
    assert log.train_events.tolist() == [0, 1, 2, 3, 6, 7]
    assert log.held_out("valid").tolist() == [4]
    assert log.held_out("test").tolist() == [5]
    assert [pool.tolist() for pool in log.pools] == [[2, 4], [3, 5, 6]]


def test_what_users_have_met_is_known() -> None:
    """Train events only."""
    log = random_log()
    user = log.user_of_event
    brute = {(int(user[e]), int(log.item[e])) for e in log.train_events}
    pairs = [(u, i) for u in range(len(log.users)) for i in range(log.num_rows)]
    found = log.has_seen(np.array([u for u, _ in pairs]), np.array([i for _, i in pairs]))

    assert {pair for pair, yes in zip(pairs, found, strict=True) if yes} == brute


def test_windows_cover_every_train_event_once() -> None:
    """Cut from the newest back, none longer than T + 1."""
    log = random_log(3, longest=40)
    start, stop = train_windows(log, max_len=5)
    covered = np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)])

    assert np.array_equal(np.sort(covered), log.train_events)
    assert (stop - start).max() == 6
    assert set(log.train_stop) <= set(stop)


def test_batches_repeat_and_epochs_differ() -> None:
    """The same seed and epoch give the same bits."""
    log = random_log()
    batches = [TrainBatches(log, max_len=6, batch_size=7, seed=1) for _ in range(2)]
    first, again = (next(iter(b.epoch(4))) for b in batches)

    assert first.negative.equal(again.negative)
    assert first.cross_at.equal(again.cross_at)
    assert not first.negative.equal(next(iter(batches[0].epoch(5))).negative)


def test_negatives_are_what_the_user_has_not_met() -> None:
    """Where the domain has such an item: each of these users has met at most 4 of a domain's items."""
    rng = np.random.default_rng(0)
    item = np.concatenate([rng.choice(120, 10, replace=False) for _ in range(20)])
    log = log_of_arrays(
        user=np.repeat(np.arange(20), 10),
        item=item,
        domain=item % 3,
        domains=("a", "b", "c"),
        num_valid=1,
        num_test=1,
    )
    batches = TrainBatches(log, max_len=10, batch_size=1, seed=0)
    for window in range(len(batches)):
        batch = batches.batch(np.array([window]), np.random.default_rng(window))
        user = int(log.user_of_event[batches._start[window]])
        assert not log.has_seen(np.full(len(batch.negative), user), batch.negative.numpy()).any()


def test_names_of_domains_are_used(tmp_path: Path) -> None:
    """Sorted by name."""
    log = read(tmp_path, events(), domain_names={"0": "toys", "1": "books"})

    assert log.domains == ("books", "toys")
    assert log.domain[:3].tolist() == [1, 0, 1]


def test_a_table_of_lists_is_unrolled(tmp_path: Path) -> None:
    """One row per user, the oldest event first; users without events are left out."""
    table = events().sort("user", "order").group_by("user", maintain_order=True).agg("item", "domain")
    empty = pl.DataFrame({"user": ["w"], "item": [[]], "domain": [[]]}, schema=table.schema)
    path = tmp_path / "users.parquet"
    pl.concat([table, empty]).write_parquet(path)
    columns = EventColumns("user", "item", "domain", "", as_lists=True)
    found = read_log(path, columns, num_valid=1, num_test=1)
    plain = read(tmp_path, events())

    assert found.users == plain.users
    assert found.item.tolist() == plain.item.tolist()
    assert found.domain.tolist() == plain.domain.tolist()


def test_unusable_tables_are_refused(tmp_path: Path) -> None:
    """By file, column, value and number of events."""
    with pytest.raises(SequenceError, match="cannot be read as parquet"):
        read_log(tmp_path / "no.parquet", COLUMNS, num_valid=1, num_test=1)
    with pytest.raises(SequenceError, match="no column 'item'; it has user, domain, order, time"):
        read(tmp_path, events().drop("item"))
    with pytest.raises(SequenceError, match="holds no event"):
        read(tmp_path, events().head(0))
    newest_unnamed = pl.when(pl.col("order") > 4).then(None).otherwise(pl.col("item")).alias("item")
    with pytest.raises(SequenceError, match="column 'item' has 1 empty values"):
        read(tmp_path, events().with_columns(newest_unnamed))
    with pytest.raises(SequenceError, match="domain '1' has no name; named are \\['0'\\]"):
        read(tmp_path, events(), domain_names={"0": "toys"})
    with pytest.raises(SequenceError, match="split 'train'; allowed are valid and test"):
        random_log().held_out("train")
    with pytest.raises(SequenceError, match="must be sorted and each have an event"):
        log_of_arrays(
            user=np.array([0, 0]),
            item=np.array([1, 2]),
            domain=np.array([0, 0]),
            domains=("a", "b"),
            num_valid=1,
            num_test=1,
        )
