"""From histories to replies: a sequence model, its click probabilities, bundle, replies; and as a feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from export.errors import RunError as ExportRunError
from export.package import BuildOptions, build_bundle
from export.run_folder import RunFolder
from service.contract.schema import DotPair, Entity
from service.contract.store import ModelStore
from tests.support.asgi import ask, with_app
from training.cli import app
from training.config import RunConfig, load_tree
from training.data.dataset import RowReader
from training.data.prepare import prepare
from training.data.source import open_data
from training.engine.artefacts import load_model
from training.engine.errors import RunError
from training.engine.fit import run_training
from training.engine.score import predict_split
from training.sequences.build import open_log
from training.sequences.clicks import HistoryNames, calibrate_clicks
from training.sequences.config import SequenceConfig
from training.sequences.content import content_vectors
from training.sequences.errors import SequenceError
from training.sequences.features import user_vectors, write_features
from training.sequences.run import SequenceModel, load_sequence_model, train_sequences

SHIPPED = Path("training/configs/sequences/synthetic_syncrec.yaml")
SMALL = (
    "model.width=16",
    "model.num_layers=1",
    "training.epochs=1",
    "training.num_threads=1",
    "training.device=cpu",
)
NUM_REPLIES = 25


@pytest.fixture(scope="module")
def sequence_run(small, tmp_path_factory) -> Path:
    """One epoch on the histories."""
    out: Path = tmp_path_factory.mktemp("sequence") / "run"
    config = load_tree(SHIPPED, SMALL, SequenceConfig)
    train_sequences(config, open_log(config.events, small.raw), out)
    return out


@pytest.fixture(scope="module")
def trained(sequence_run) -> SequenceModel:
    """Its model, two domains switched so that both paths serve."""
    model = load_sequence_model(sequence_run)
    switched = tuple(name in ("d00", "d03") for name in model.domains)
    return SequenceModel(model.net, model.config, model.items, model.domains, switched, model.trained_until)


@pytest.fixture(scope="module")
def run(trained, prepared, tmp_path_factory) -> Path:
    """Its click probabilities on the impressions."""
    out: Path = tmp_path_factory.mktemp("clicks") / "run"
    out.mkdir()
    (out / "prepared").symlink_to(prepared.path)
    calibrate_clicks(trained, prepared, out, name="clicks", names=HistoryNames(), trained_until_ms=None)
    return out


@pytest.fixture(scope="module")
def store(run, tmp_path_factory) -> Path:
    """A store with its bundle."""
    folder: Path = tmp_path_factory.mktemp("store")
    build_bundle(RunFolder.open(run), ModelStore(folder), BuildOptions(), progress=lambda _: None)
    return folder


def logged(raw: Path, split: str) -> pl.DataFrame:
    """Rows of the log in the order of the predictions."""
    return pl.read_parquet(raw / "interactions.parquet").filter(pl.col("split") == split)


def test_replies_are_the_offline_scores(small, run, store) -> None:
    """Within 1e-5, for impressions of several domains, switched ones too, with stored users and items."""
    offline = pl.read_parquet(run / "predictions" / "test.parquet")
    rows = logged(small.raw, "test")
    assert len(rows) == len(offline)
    chosen = [
        int(place)
        for name in ("d00", "d03", "d01", "d02", "d05")
        for place in np.flatnonzero((rows["domain"] == name).to_numpy())[: NUM_REPLIES // 5]
    ]

    async def use(application) -> list[float]:
        found = []
        for place in chosen:
            row = rows.row(place, named=True)
            body = {
                "domain": row["domain"],
                "user": {"id": row["user_id"]},
                "items": [{"id": row["item_id"]}],
            }
            status, _, reply = await ask(application, body)
            assert status == 200, reply
            found += reply["scores"]
        return found

    served = with_app(store, use)
    assert len(chosen) >= 20
    np.testing.assert_allclose(served, offline["score"].to_numpy()[chosen], atol=1e-5)


def test_a_history_in_the_request_takes_the_place_of_the_stored_one(small, store) -> None:
    """The stored history sent along changes nothing; another one does; many items need one call."""
    users = pl.read_parquet(small.raw / "users.parquet")
    user = users.filter(pl.col("history_items").list.len() >= 5).row(0, named=True)
    events = [
        {"item": item, "domain": domain}
        for item, domain in zip(user["history_items"], user["history_domains"], strict=True)
    ]
    items = [{"id": name} for name in pl.read_parquet(small.raw / "items.parquet")["item_id"].head(50)]

    async def use(application) -> list[list[float]]:
        found = []
        for more in ({}, {"history": events}, {"history": events[:2]}):
            body = {"domain": "d01", "user": {"id": user["user_id"], **more}, "items": items}
            status, _, reply = await ask(application, body)
            assert status == 200, reply
            found.append(reply["scores"])
        return found

    stored, same, shorter = with_app(store, use)
    assert same == stored
    assert shorter != stored
    assert len(set(stored)) > 10


def test_figures_are_those_of_any_run(run, prepared) -> None:
    """The stored model scores as its predictions say, and both classes have a calibrated mean."""
    model = load_model(run / "model.pt", prepared.schema)
    rows = predict_split(model, prepared, "valid", batch_size=4096, device=torch.device("cpu"))
    stored = pl.read_parquet(run / "predictions" / "valid.parquet")

    np.testing.assert_allclose(rows.logit, stored["logit"].to_numpy(), atol=1e-6)
    assert abs(float(stored["score"].mean()) - float(stored["label"].mean())) < 0.01  # type: ignore[arg-type]


def test_new_items_start_from_their_attributes(prepared) -> None:
    """Items of one brand and attributes lie nearer to the vector of such an item than to the mean."""
    rows = prepared.schema.encoder("item_id").num_rows  # type: ignore[union-attr]
    generator = np.random.default_rng(0)
    has_events = torch.from_numpy(generator.random(rows) < 0.7)
    has_events[:2] = False
    brands = np.zeros(rows, np.int64)
    block = prepared.entities[Entity.ITEM]
    layout = prepared.layout(Entity.ITEM)
    ids = np.asarray(block.ints[:, layout.slot("item_id").start])
    brands[ids] = np.asarray(block.ints[:, layout.slot("brand").start])
    per_brand = torch.randn(int(brands.max()) + 1, 8)
    vectors = per_brand[torch.from_numpy(brands)]
    given = torch.where(has_events[:, None], vectors, torch.zeros(8))
    made, found = content_vectors(given, has_events, prepared, item="item_id")
    new = found & ~has_events & (torch.from_numpy(brands) >= 2)

    assert int(new.sum()) > 20
    error = (made[new] - vectors[new]).norm(dim=1)
    spread = (vectors[new] - vectors[found & has_events].mean(0)).norm(dim=1)
    assert float(error.median()) < 0.6 * float(spread.median())


def test_a_click_model_reads_the_score(small, trained, tmp_path: Path) -> None:
    """The dot product of both vectors stands in every row as the graph computes it; CESAA trains on it."""
    out = tmp_path / "with"
    source = open_data(small.raw)
    told = write_features(trained, source, out, names=HistoryNames(), trained_until_ms=None)
    found = prepare(out, tmp_path / "prepared")
    schema = found.schema
    score = next(place for place, pair in enumerate(schema.pairs) if pair.name == "sequence_score")
    batch = next(iter(RowReader(found, "valid").batches(64, seed=0, epoch=0, shuffle=False)))
    columns = {e: found.layout(e).slot(f"sequence_{e}", "values").columns for e in (Entity.USER, Entity.ITEM)}
    dots = (batch.user_floats[:, columns[Entity.USER]] * batch.item_floats[:, columns[Entity.ITEM]]).sum(
        axis=1
    )

    assert isinstance(schema.pairs[score], DotPair)
    assert told.num_items > 0.9 * told.num_all_items
    np.testing.assert_allclose(batch.pairs[:, score], dots, rtol=1e-4, atol=1e-5)
    assert np.abs(dots).max() > 0
    config = load_tree(
        Path("training/configs/synthetic_cesaa.yaml"),
        (
            "training.epochs=1",
            "training.num_threads=1",
            "model.inputs.exclude=[sequence_user, sequence_item]",
        ),
        RunConfig,
    )
    run = tmp_path / "cesaa"
    run.mkdir()
    (run / "prepared").symlink_to(found.path)
    metrics = run_training(config, found, run).metrics
    assert metrics["test"]["total_auc"] > 0.5


def test_a_user_s_vector_reads_the_stored_history_alone(trained) -> None:
    """Neither another user nor an event that is not in the list moves it; the last of the list does."""
    items, domains = list(trained.items[:6]), [trained.domains[0]] * 6
    both = user_vectors(trained, [items, items[:5]], [domains, domains[:5]])
    alone = user_vectors(trained, [items[:5]], [domains[:5]])

    np.testing.assert_allclose(both[1], alone[0], atol=1e-6)
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_learning_from_the_future_is_refused(small, trained, prepared, tmp_path: Path) -> None:
    """Train events must end before the rows that are calibrated on, and before the first row for features."""
    first, last = prepared.info["times_ms"]["train"]
    with pytest.raises(SequenceError, match="the model learned from events until"):
        calibrate_clicks(
            trained, prepared, tmp_path / "a", name="a", names=HistoryNames(), trained_until_ms=last + 1
        )
    with pytest.raises(SequenceError, match=f"the first impression is at {first} ms"):
        write_features(
            trained, open_data(small.raw), tmp_path / "b", names=HistoryNames(), trained_until_ms=first
        )
    with pytest.raises(SequenceError, match="no sequence feature 'past'"):
        write_features(
            trained,
            open_data(small.raw),
            tmp_path / "b",
            names=HistoryNames(history="past"),
            trained_until_ms=None,
        )
    with pytest.raises(SequenceError, match="'history' has no field 'shop'"):
        write_features(
            trained,
            open_data(small.raw),
            tmp_path / "b",
            names=HistoryNames(domain_field="shop"),
            trained_until_ms=None,
        )


def test_without_impressions_there_is_nothing_to_export(sequence_run) -> None:
    """A sequence run has no probabilities, so export refuses it."""
    with pytest.raises(ExportRunError, match="prepared is missing"):
        RunFolder.open(sequence_run)


def test_impressions_do_not_train_it(run, prepared, tmp_path: Path) -> None:
    """`ctr-train run` says which commands do."""
    config = load_tree(run / "config.yaml", (), RunConfig)
    with pytest.raises(RunError, match="train it by `ctr-train sequence fit`"):
        run_training(config, prepared, tmp_path / "run")


def test_commands_are_there() -> None:
    """Under `ctr-train sequence`."""
    names = {group.name for group in app.registered_groups}
    assert "sequence" in names
