"""A sequence model behind a schema: what is refused, and whose vectors go where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import typer
import yaml

from tests.support.schemas import full_schema
from tests.support.syncrec import sequence_schema
from tests.unit.training.sequences.toy import random_log
from training.cli_sequence import history_names
from training.data.source import DataSource, parse_description
from training.models.syncrec_net import SasrecNet
from training.sequences.clicks import HistoryNames, net_rows, serving_config
from training.sequences.config import (
    EventsConfig,
    SasrecEncoderConfig,
    SequenceConfig,
    SyncrecEncoderConfig,
)
from training.sequences.errors import SequenceError
from training.sequences.features import described, write_features
from training.sequences.run import SequenceModel, trained_until_ms

LOG = random_log()


def sasrec() -> SequenceModel:
    """A model of another method."""
    config = SasrecEncoderConfig(width=8, max_len=8)
    net = SasrecNet(
        num_rows=20, num_domains=3, width=8, max_len=8, num_layers=2, num_heads=1, dropout=0.0, view="mixed"
    )
    return SequenceModel(net, config, ("i1", "i9", "x"), ("a", "b", "c"), (False, True, False), 5)


def test_only_syncrec_serves() -> None:
    """Another method has no click probabilities."""
    with pytest.raises(SequenceError, match="a model of type syncrec can serve, not sasrec"):
        serving_config(sasrec(), HistoryNames(), ("a", "b"))


def test_switched_domains_are_those_of_the_impressions() -> None:
    """A switched domain that the impressions lack needs no head."""
    model = SequenceModel(
        sasrec().net, SyncrecEncoderConfig(), ("i1",), ("a", "b", "c"), (True, True, False), 5
    )

    assert serving_config(model, HistoryNames(), ("b", "z")).single_domains == ("b",)


def test_items_go_by_name() -> None:
    """Rows 2 and 3 of the net are i1 and i9; others have none, nor have missing and unknown."""
    rows = net_rows(sasrec(), sequence_schema(), "item_id")

    assert rows[[3, 11]].tolist() == [2, 3]
    assert int((rows >= 0).sum()) == 2
    with pytest.raises(SequenceError, match="items have encoder 'item_id', hash; names are needed"):
        net_rows(sasrec(), full_schema(), "item_id")


def test_names_of_features_are_read_from_one_word() -> None:
    """FEATURE.ITEM.DOMAIN."""
    assert history_names("past.what.where", "id") == HistoryNames("past", "what", "where", "id")
    with pytest.raises(typer.BadParameter, match=r"'past' is not FEATURE\.ITEM_FIELD\.DOMAIN_FIELD"):
        history_names("past", "id")


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        (EventsConfig(time="t", time_unit="ms"), 5),
        (EventsConfig(time="t", time_unit="s"), 5_999),
        (EventsConfig(), None),
        (EventsConfig(time_unit="ms", as_lists=True), None),
    ],
)
def test_the_last_event_has_a_moment_where_events_have_a_clock(
    tmp_path: Path, events: EventsConfig, wanted: int | None
) -> None:
    """A second lasts until its last millisecond; places in lists are no moments."""
    config = SequenceConfig(name="x", model=SyncrecEncoderConfig(), events=events)
    (tmp_path / "config.yaml").write_text(config.to_yaml())

    assert trained_until_ms(tmp_path, sasrec()) == wanted


DESCRIPTION = {
    "name": "d",
    "interactions": "log.parquet",
    "users": {"file": "users.parquet", "key": "user"},
    "items": {"file": "items.parquet", "key": "item"},
    "columns": {
        "user": "user",
        "item": "item",
        "domain": "domain",
        "label": "label",
        "time": "t",
        "split": "s",
    },
    "features": [
        {
            "name": "history",
            "entity": "user",
            "kind": "sequence",
            "max_len": 4,
            "fields": [{"name": "item", "column": "hi"}, {"name": "domain", "column": "hd"}],
        }
    ],
}


def source(folder: Path, **changes: object) -> DataSource:
    """A data set's description, without files."""
    text = yaml.safe_dump(json.loads(json.dumps({**DESCRIPTION, **changes}))).encode()
    return DataSource(folder, parse_description(text), text, (folder / "log.parquet",))


def test_features_stand_beside_the_tables(tmp_path: Path) -> None:
    """Two files, three features and their product; an item that training never met has no vector."""
    users = pl.DataFrame({"user": ["u", "v"], "hi": [["i1", "new", "i9"], []], "hd": [["a", "b", "a"], []]})
    users.write_parquet(tmp_path / "users.parquet")
    pl.DataFrame({"item": ["i9", "new"]}).write_parquet(tmp_path / "items.parquet")
    torch.manual_seed(0)
    model = sasrec()
    model.net.eval()
    told = write_features(
        model, source(tmp_path), tmp_path / "out", names=HistoryNames(), trained_until_ms=None
    )
    items = pl.read_parquet(tmp_path / "out" / "sequence_items.parquet")
    vectors = pl.read_parquet(tmp_path / "out" / "sequence_users.parquet")["sequence_user"].to_list()
    text = yaml.safe_load((tmp_path / "out" / "dataset.yaml").read_text())

    assert (told.num_users, told.num_items, told.num_all_items) == (2, 1, 2)
    assert items["sequence_known"].to_list() == [1, 0]
    assert items["sequence_item"].to_list()[1] is None
    np.testing.assert_allclose(items["sequence_item"].to_list()[0], model.net.items.weight[3].tolist())
    assert np.isfinite(vectors).all()
    assert text["dots"] == [{"name": "sequence_score", "left": "sequence_user", "right": "sequence_item"}]
    assert text == described(source(tmp_path), tmp_path / "out", width=8)


def test_data_without_tables_or_columns_are_refused(tmp_path: Path) -> None:
    """Vectors need something to stand beside."""
    pl.DataFrame({"user": ["u"], "hd": [["a"]]}).write_parquet(tmp_path / "users.parquet")
    names, out = HistoryNames(), tmp_path / "out"
    with pytest.raises(SequenceError, match="needs a table of users and one of items"):
        write_features(sasrec(), source(tmp_path, items=None), out, names=names, trained_until_ms=None)
    with pytest.raises(SequenceError, match="no column 'hi'; it has user, hd"):
        write_features(sasrec(), source(tmp_path), out, names=names, trained_until_ms=None)
