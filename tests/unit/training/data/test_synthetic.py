"""Guarantees of the synthetic click log: its truth, its files, its determinism, its bounded memory."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from tests.support.synthetic import SMALL, brute_auc, small
from training.data.synthetic import (
    DAY_MS,
    LOG_START_MS,
    SyntheticConfig,
    SyntheticSummary,
    build_world,
    generate,
)
from training.data.synthetic_truth import Exposures, World

TABLES = ("interactions", "users", "items")


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSummary:
    return generate(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def tables(summary: SyntheticSummary) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(summary.folder / f"{name}.parquet") for name in TABLES}


@pytest.fixture(scope="module")
def log(tables: dict[str, pl.DataFrame]) -> pl.DataFrame:
    return tables["interactions"]


@pytest.fixture(scope="module")
def truth_json(summary: SyntheticSummary) -> dict:
    return json.loads((summary.folder / "truth.json").read_text())


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(SMALL)


def preference(world: World, domain: int, user: np.ndarray, item: np.ndarray, progress: float) -> np.ndarray:
    """The personal part of the logits of one domain: what remains beside the same rows with zero weights."""
    zeros = np.zeros(len(user), dtype=np.int64)
    rows = Exposures(zeros + domain, user, item, zeros, zeros, progress)
    return world.logits(rows) - world.logits(rows, np.zeros_like(world.structure.weights))


def pairs(world: World, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, len(world.users.cdf), count), rng.integers(0, len(world.items.brand), count)


def test_clicks_of_every_domain_match_their_true_probability(log: pl.DataFrame) -> None:
    """Clicks are Bernoulli draws: no domain is more than 4.5 standard deviations off."""
    chance = pl.col("true_probability")
    by_domain = log.group_by("domain").agg(
        z=(pl.col("label").cast(pl.Float64) - chance).sum() / (chance * (1 - chance)).sum().sqrt()
    )

    assert SMALL.num_domains == len(by_domain)
    assert by_domain["z"].abs().max() < 4.5
    assert 0.5 < by_domain["z"].std() < 1.6


def test_truth_is_calibrated_at_every_level(log: pl.DataFrame) -> None:
    """Within each twentieth of the score range the click rate is the mean score, within 4.5 sigma."""
    chance, label = log["true_probability"].to_numpy(), log["label"].to_numpy()
    for rows in np.array_split(np.argsort(chance), 20):
        spread = np.sqrt((chance[rows] * (1 - chance[rows])).sum())

        assert abs(label[rows].sum() - chance[rows].sum()) < 4.5 * spread


def test_domains_get_their_base_rate(world: World) -> None:
    """Fresh draws of a domain have the planted mean probability."""
    rng = np.random.default_rng(1)
    for domain in (0, 7, SMALL.num_domains - 1):
        rows = world.draw(rng, np.full(20_000, domain), rng.integers(0, 24, 20_000), 0.0)
        mean = (1 / (1 + np.exp(-world.logits(rows)))).mean()

        assert mean == pytest.approx(world.structure.base_rate[domain], abs=0.02)


def test_log_is_in_time_order_and_split_by_day(log: pl.DataFrame, summary: SyntheticSummary) -> None:
    """Train, then one day of valid, then one day of test; `hour` agrees with the clock."""
    day = (log["time_ms"] - LOG_START_MS) // DAY_MS
    expected = np.select([day == SMALL.days - 1, day == SMALL.days - 2], ["test", "valid"], "train")

    assert log["time_ms"].is_sorted()
    assert day[0] == 0
    assert expected.tolist() == log["split"].to_list()
    assert log["hour"].to_list() == (log["time_ms"] // 3_600_000 % 24).to_list()
    assert dict(log["split"].value_counts().iter_rows()) == summary.rows_per_split
    assert log["label"].mean() == pytest.approx(summary.click_rate)


def test_domain_sizes_are_uneven_with_a_tail(log: pl.DataFrame, truth_json: dict) -> None:
    """Sizes come out exactly as planned: Zipf head, then tail domains of `tail_rows` rows."""
    sizes = dict(log["domain"].value_counts().iter_rows())
    names = [f"d{index:02d}" for index in range(SMALL.num_domains)]
    tail = [name for name in names if truth_json["domains"][name]["tail"]]

    assert [sizes[name] for name in names] == SMALL.domain_rows().tolist()
    assert tail == names[-SMALL.num_tail_domains :]
    assert {sizes[name] for name in tail} == {SMALL.tail_rows}
    assert sizes["d00"] / sizes["d03"] == pytest.approx(4, rel=0.01)
    assert min(sizes[name] for name in names[: -len(tail)]) >= SMALL.tail_rows


def test_histories_precede_the_log(tables: dict[str, pl.DataFrame]) -> None:
    """Every history is parallel lists of known ids, oldest first, all before the first row of the log."""
    users = tables["users"]
    length = pl.col("history_items").list.len()
    events = users.explode("history_items", "history_domains", "history_time_ms", empty_as_null=False)
    shown = tables["items"].select("item_id", "domains").explode("domains")

    assert events["history_time_ms"].max() < LOG_START_MS <= tables["interactions"]["time_ms"].min()
    assert users.filter(length > SMALL.history_length).is_empty()
    assert not users.filter(length == 0).is_empty()
    assert users["history_time_ms"].list.eval(pl.element().diff().min() >= 0).explode().drop_nulls().all()
    assert events.join(
        shown, left_on=["history_items", "history_domains"], right_on=["item_id", "domains"], how="anti"
    ).is_empty()
    assert users.filter(length >= 10)["history_domains"].list.n_unique().mean() > 4


def test_histories_follow_taste(tables: dict[str, pl.DataFrame], world: World) -> None:
    """Clicked items suit the user in the domain of the click better than items of another user's history."""
    events = tables["users"].explode("history_items", "history_domains", empty_as_null=False)
    user = events["user_id"].str.slice(1).cast(pl.Int64).to_numpy()
    item = events["history_items"].str.slice(1).cast(pl.Int64).to_numpy()
    domain = events["history_domains"].str.slice(1).cast(pl.Int64).to_numpy()
    zeros = np.zeros_like(user)
    own = Exposures(domain, user, item, zeros, zeros, 0.0)
    other = replace(own, user=np.random.default_rng(0).permutation(user))

    assert world.logits(own).mean() - world.logits(other).mean() > 0.3


def test_drift_moves_the_later_truth_only() -> None:
    """With drift the first moment keeps its truth and the last day differs; without, nothing moves."""
    still, moving = build_world(SMALL), build_world(small(drift=1.0))
    user, item = pairs(still)
    first, last = preference(moving, 0, user, item, 0.0), preference(moving, 0, user, item, 1.0)

    assert np.array_equal(preference(still, 0, user, item, 0.0), preference(still, 0, user, item, 1.0))
    assert np.array_equal(preference(still, 0, user, item, 0.0), first)
    assert 0.5 < np.corrcoef(first, last)[0, 1] < 0.95
    assert last.std() == pytest.approx(first.std(), rel=0.15)


def test_drift_changes_the_log(tmp_path: Path) -> None:
    drifting = generate(small(drift=1.0), tmp_path / "drift")
    still = generate(SMALL, tmp_path / "still")

    assert drifting.best != still.best
    assert drifting.rows_per_split == still.rows_per_split


def test_groups_agree_oppose_or_ignore_each_other(world: World, truth_json: dict) -> None:
    """Preferences of two domains over the same pairs: alike within a group, opposed if harmful."""
    user, item = pairs(world)
    group = world.structure.group
    truths = [preference(world, domain, user, item, 0.0) for domain in range(SMALL.num_domains)]
    correlation = np.corrcoef(truths)
    same = (group[:, None] == group) & ~np.eye(len(group), dtype=bool)
    opposite = world.structure.opposite[group][:, None] == group

    assert correlation[same].min() > 0.8
    assert correlation[opposite].max() < -0.3
    assert abs(correlation[~same & ~opposite & ~np.eye(len(group), dtype=bool)].mean()) < 0.4
    assert truth_json["opposite_group"] == [1, 0, None, None]
    assert [entry["group"] for entry in truth_json["domains"].values()] == group.tolist()


def test_similarity_matrix_has_the_planted_cosines(truth_json: dict) -> None:
    """By hand: 1 with itself, common - (1 - common) for an opposite pair, common for unrelated groups."""
    similarity = np.array(truth_json["group_similarity"])
    common = SMALL.common
    expected = np.full((4, 4), common)
    expected[[0, 1], [1, 0]] = 2 * common - 1
    np.fill_diagonal(expected, 1.0)

    np.testing.assert_allclose(similarity, expected, atol=1e-5)


def test_every_group_has_several_domains(world: World) -> None:
    assert np.bincount(world.structure.group).tolist() == [5, 5, 5, 5]


def test_reachable_figures_are_those_of_the_test_rows(log: pl.DataFrame, truth_json: dict) -> None:
    """AUC and log loss of the true probability, recomputed from the file by counting pairs."""
    test = log.filter(split="test")
    chance, label = test["true_probability"].to_numpy(), test["label"].to_numpy()
    scored = [
        (len(part), brute_auc(part["label"].to_numpy(), part["true_probability"].to_numpy()))
        for part in test.partition_by("domain")
        if part["label"].n_unique() == 2
    ]
    best = truth_json["reachable_on_test"]["best"]
    sizes, aucs = np.array(scored).T

    assert best["total_auc"] == pytest.approx(brute_auc(label, chance), abs=3e-4)
    assert best["domain_auc"] == pytest.approx(np.average(aucs, weights=sizes), abs=5e-4)
    assert best["logloss"] == pytest.approx(-np.log(np.where(label == 1, chance, 1 - chance)).mean())
    assert best["skipped_domains"] == SMALL.num_domains - len(scored)


def test_knowing_the_group_beats_pooling(truth_json: dict, summary: SyntheticSummary) -> None:
    """There is room for structure: the group carries nearly all, pooling loses five points or more."""
    figures = truth_json["reachable_on_test"]

    assert figures["best"] == summary.best
    assert 0.75 < figures["best"]["domain_auc"] < 0.85
    assert figures["group"]["domain_auc"] > figures["best"]["domain_auc"] - 0.02
    assert figures["pooled"]["domain_auc"] < figures["group"]["domain_auc"] - 0.05
    assert 0.2 < summary.click_rate < 0.3


def test_truth_counts_agree_with_the_log(log: pl.DataFrame, truth_json: dict) -> None:
    counted = log.group_by("domain", "split").agg(
        pl.len(), pl.col("label").cast(pl.Int64).sum(), pl.col("true_probability").sum()
    )
    for domain, split, rows, clicks, expected in counted.iter_rows():
        entry = truth_json["domains"][domain]

        assert (rows, clicks) == (entry["rows"][split], entry["clicks"][split])
        assert expected == pytest.approx(entry["expected_clicks"][split])
    assert SyntheticConfig.model_validate(truth_json["config"]) == SMALL


def test_dataset_yaml_names_real_columns(summary: SyntheticSummary, tables: dict[str, pl.DataFrame]) -> None:
    """Every column that the description names exists; the outcome is listed and is no feature."""
    described = yaml.safe_load((summary.folder / "dataset.yaml").read_text())
    columns = {"user": tables["users"], "item": tables["items"], "context": tables["interactions"]}
    named = described["columns"]
    for feature in described["features"]:
        fields = feature.get("fields", [{"column": feature["name"]}])
        wanted = {field["column"] for field in fields} | (
            {feature["weights"]} if "weights" in feature else set()
        )
        assert wanted <= set(columns[feature["entity"]].columns)

    assert described["outcomes"] == ["dwell_ms"]
    assert {"dwell_ms", "label", "true_probability"}.isdisjoint(f["name"] for f in described["features"])
    assert named["time"] == {"column": "time_ms", "unit": "ms"}
    assert {value for key, value in named.items() if key != "time"} <= set(tables["interactions"].columns)
    assert [described[key]["key"] for key in ("users", "items")] == ["user_id", "item_id"]
    lengths = {f["name"]: f.get("max_len") for f in described["features"]}
    assert (lengths["history"], lengths["attributes"], lengths["interests"]) == (SMALL.history_length, 4, 5)


def test_dwell_is_an_outcome_tied_to_the_click(log: pl.DataFrame) -> None:
    dwell = np.log1p(log["dwell_ms"].to_numpy())

    assert log["dwell_ms"].min() >= 0
    assert np.corrcoef(dwell, log["label"].to_numpy())[0, 1] > 0.7


def test_entities_have_lists_and_missing_values(tables: dict[str, pl.DataFrame]) -> None:
    """About a tenth of the numeric values are missing; weights run parallel to interests, strongest first."""
    users, items = tables["users"], tables["items"]

    assert users["activity"].null_count() / len(users) == pytest.approx(0.1, abs=0.04)
    assert items["price"].null_count() / len(items) == pytest.approx(0.1, abs=0.05)
    assert (users["interests"].list.len() == users["interest_weights"].list.len()).all()
    assert users["interest_weights"].explode().min() > 0
    assert users["interest_weights"].list.eval(pl.element().diff().max() <= 0).explode().drop_nulls().all()
    assert items["attributes"].list.len().is_between(2, 4).all()
    assert (items["attributes"].list.n_unique() == items["attributes"].list.len()).all()
    assert items.filter(~pl.col("domains").list.contains(pl.col("home_domain"))).is_empty()
    assert items["domains"].list.len().max() > 1
    assert items["age_days"].min() >= 0


def test_log_only_shows_items_of_the_domain(tables: dict[str, pl.DataFrame]) -> None:
    shown = tables["items"].select("item_id", domain="domains").explode("domain")
    log = tables["interactions"]

    assert log.join(shown, on=["item_id", "domain"], how="anti").is_empty()
    assert log.join(tables["users"], on="user_id", how="anti").is_empty()
    assert log.group_by("user_id").agg(pl.col("domain").n_unique())["domain"].median() > 3


def test_appeal_follows_from_attributes(world: World) -> None:
    """Zero-shot is possible: appeal is an affine function of the attributes' mean embedding."""
    items = world.items
    held = items.attributes >= 0
    mean = [
        items.embedding[codes[keep]].mean(axis=0) for codes, keep in zip(items.attributes, held, strict=True)
    ]
    for latent, column in enumerate(np.array(mean).T):
        assert np.corrcoef(column, items.appeal[:, latent])[0, 1] > 0.9999


def test_same_config_same_content(summary: SyntheticSummary, tables: dict, tmp_path: Path) -> None:
    """A second run, over files of an earlier one, writes equal tables and descriptions."""
    generate(small(seed=8), tmp_path)
    again = generate(SMALL, tmp_path)

    for name in TABLES:
        assert_frame_equal(pl.read_parquet(tmp_path / f"{name}.parquet"), tables[name])
    for name in ("truth.json", "dataset.yaml"):
        assert (tmp_path / name).read_bytes() == (summary.folder / name).read_bytes()
    assert replace(again, folder=summary.folder) == summary


def test_other_seed_other_content(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    generate(small(seed=SMALL.seed + 1), tmp_path)

    for name in TABLES:
        assert not pl.read_parquet(tmp_path / f"{name}.parquet").equals(tables[name])
