"""Runs with clusters: the three versions, what they leave behind, exact resume, worded refusals."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from tests.support.runs import Dying, KillError, run_into
from training.clustering.affinity import LookaheadLosses
from training.clustering.archive import load_state
from training.clustering.assignment import load_assignment
from training.clustering.cluster_run import Job, find_clusters
from training.clustering.errors import AssignmentError, RulesError
from training.config import ConfigError, load_config
from training.data.dataset import RowReader
from training.engine.artefacts import load_model
from training.engine.checkpoint import load_tensors, weights_digest
from training.engine.errors import CheckpointError, RunError
from training.engine.fit import evaluate_run, tower_table
from training.metrics import auc
from training.report import write_report
from training.track import read_log

CLUSTERS = (
    "model.towers=clusters",
    "clustering={version: end_to_end, num_clusters: 3, warmup_batches: 20, update_interval: 15, "
    "step_rows: 64, eval_rows: 64, held_out_ratio: 0.1, min_train_rows: 100, min_eval_rows: 10, "
    "mode: first_order}",
)


def settings(small, *overrides):
    return load_config(small.config, [*CLUSTERS, *overrides])


@pytest.fixture(scope="module")
def end_to_end(small, prepared, tmp_path_factory):
    return run_into(settings(small), prepared, tmp_path_factory.mktemp("runs") / "e2e")


def test_end_to_end_leaves_clusters_that_the_model_serves_by(end_to_end, prepared):
    folder = end_to_end.folder
    assignment = load_assignment(folder.clusters)
    assert (assignment.method, assignment.num_clusters) == ("cdc", 3)
    assert assignment.domains == prepared.schema.domains
    table = load_tensors(folder.model)["state_dict"]["ranker.tower_of_domain"]
    assert table.tolist() == tower_table(assignment, prepared.schema.domains)
    with np.load(folder.clusters / "matrices.npz") as stored:
        matrices = dict(stored)
    D = prepared.schema.num_domains
    assert {name: values.shape for name, values in matrices.items()} == {
        "mi": (D, D), "mh": (D, D), "mc": (D, D), "mt": (50, D),
    }  # fmt: skip
    said = end_to_end.metrics["clustering"]
    assert said["assignment"] == assignment.digest
    assert said["sizes"] == [len(names) for names in assignment.targets]
    state = load_state(folder.clusters / "state.npz")
    assert state.t == assignment.num_updates
    assert end_to_end.metrics["test"]["total_auc"] > 0.6


def test_the_clusters_are_those_of_the_best_weights(end_to_end):
    events = read_log(end_to_end.folder.log)
    updates = [e["step"] for e in events if e["event"] == "clusters"]
    assert updates == [20, 35, 50, 65, 80, 95, 110][: len(updates)]
    assert len(updates) > 3
    best = end_to_end.metrics["best_step"]
    assert load_assignment(end_to_end.folder.clusters).num_updates == sum(step < best for step in updates)
    checks = [e["step"] for e in events if e["event"] == "evaluate"]
    assert min(checks) > 20  # nothing is judged by the mean of the towers


def test_a_model_with_towers_by_cluster_is_read_back(end_to_end, prepared):
    model = load_model(end_to_end.folder.model, prepared.schema)
    assert weights_digest(model.state_dict()) == end_to_end.metrics["digests"]["weights"]
    again = evaluate_run(end_to_end.folder.root, "test")
    assert again["total_auc"] == pytest.approx(end_to_end.metrics["test"]["total_auc"], abs=1e-9)


@pytest.mark.parametrize("steps", [12, 33, 70])
def test_a_killed_end_to_end_run_goes_on_with_the_same_bits(end_to_end, small, prepared, tmp_path, steps):
    config = settings(small)
    with pytest.raises(KillError):
        run_into(config, prepared, tmp_path / "cut", watcher=Dying(steps))
    again = run_into(config, prepared, tmp_path / "cut", resume=True)
    assert again.metrics["digests"]["weights"] == end_to_end.metrics["digests"]["weights"]
    assert again.metrics["clustering"] == end_to_end.metrics["clustering"]
    assert again.metrics["test"] == end_to_end.metrics["test"]
    kept = ("event", "step", "t", "moved", "cluster_sizes", "monitor")
    logs = [
        [
            {k: e.get(k) for k in kept}
            for e in read_log(r.folder.log)
            if e["event"] in ("clusters", "evaluate")
        ]
        for r in (again, end_to_end)
    ]
    assert logs[0] == logs[1]


def test_the_number_of_clusters_is_chosen_and_a_kill_does_not_change_it(small, prepared, tmp_path):
    config = settings(small, "clustering.num_clusters=auto", "training.epochs=1")
    whole = run_into(config, prepared, tmp_path / "whole")
    choice = json.loads((whole.folder.clusters / "choice.json").read_text())
    assert choice["num_clusters"] == whole.metrics["clustering"]["num_clusters"] >= 3
    assert choice["evidence"][0]["num_clusters"] == 3
    with pytest.raises(KillError):
        run_into(config, prepared, tmp_path / "cut", watcher=Dying(15))
    again = run_into(config, prepared, tmp_path / "cut", resume=True)
    assert again.metrics["digests"]["weights"] == whole.metrics["digests"]["weights"]


def test_two_stage_trains_a_fresh_model_on_all_rows(end_to_end, small, prepared, tmp_path):
    given = end_to_end.folder.clusters
    config = settings(
        small, "clustering.version=two_stage", f"clustering.assignment={given / 'assignment.json'}"
    )
    done = run_into(config, prepared, tmp_path / "two")
    assert load_assignment(done.folder.clusters) == load_assignment(given)
    assert done.metrics["clustering"]["version"] == "two_stage"
    trained = [e["rows"] for e in read_log(done.folder.log) if e["event"] == "train"][-1]
    assert trained > 27_500  # two epochs of 15,000, up to the last line of the log
    table = load_tensors(done.folder.model)["state_dict"]["ranker.tower_of_domain"].tolist()
    assert table == tower_table(load_assignment(given), prepared.schema.domains)


@pytest.mark.parametrize(("method", "count"), [("one_cluster", 1), ("random", 4), ("one_per_domain", 20)])
def test_baselines_need_no_lookahead(small, prepared, tmp_path, method, count):
    config = settings(
        small, "clustering.version=two_stage", f"clustering.method={method}", "clustering.num_clusters=4",
        "training.epochs=1",
    )  # fmt: skip

    def forbidden(*_):
        raise AssertionError

    done = run_into(config, prepared, tmp_path / method, make_lookahead=forbidden)
    assert done.metrics["clustering"]["num_clusters"] == count
    assert done.metrics["clustering"]["method"] == method


def test_tag_groups_by_what_cdc_measures(small, prepared, tmp_path):
    config = settings(
        small, "clustering.version=two_stage", "clustering.method=tag", "clustering.cluster_updates=2",
        "training.epochs=1",
    )  # fmt: skip
    done = run_into(config, prepared, tmp_path / "tag")
    assignment = load_assignment(done.folder.clusters)
    assert (assignment.method, assignment.num_updates) == ("tag", 2)
    for targets, sources in zip(assignment.targets, assignment.sources, strict=True):
        assert set(sources) == set(targets) - set(assignment.attached)


@pytest.fixture(scope="module")
def split(end_to_end, small, prepared, tmp_path_factory):
    given = end_to_end.folder.clusters
    config = settings(small, "clustering.version=split", f"clustering.assignment={given}")
    return config, run_into(config, prepared, tmp_path_factory.mktemp("runs") / "split")


def test_split_trains_on_sources_and_judges_on_targets(split, prepared):
    folder, metrics = split[1].folder, split[1].metrics
    assignment = load_assignment(folder.clusters)
    assert len(folder.parts) == assignment.num_clusters
    assert not folder.model.exists()
    rows = prepared.domain_rows
    for k, part in enumerate(folder.parts):
        own = json.loads(part.metrics.read_text())
        served = {name for name, d in own["test"]["domains"].items() if d["rows"]}
        assert served <= set(assignment.targets[k])
        assert own["test"]["rows"] == sum(rows["test"].get(name, 0) for name in assignment.targets[k])
        trained = sum(rows["train"][name] for name in assignment.sources[k])
        last = [e for e in read_log(part.log) if e["event"] == "train"][-1]
        assert 0 < last["rows"] <= 2 * trained
        assert metrics["clusters"][k]["weights"] == own["digests"]["weights"]
    assert metrics["separate_models"]


def test_split_joins_predictions_in_the_reader_s_order(split, prepared):
    folder, metrics = split[1].folder, split[1].metrics
    frame = pl.read_parquet(folder.predictions("test"))
    labels = np.concatenate([b.label for b in RowReader(prepared, "test").batches(512)])
    np.testing.assert_array_equal(frame["label"].to_numpy(), labels)
    parts = pl.concat([pl.read_parquet(part.predictions("test")) for part in folder.parts])
    order = ["domain", "user_code", "logit", "label"]
    assert frame.sort(order).equals(parts.sort(order))
    assert metrics["test"]["total_auc"] == pytest.approx(
        auc(frame["label"].to_numpy(), frame["score"].to_numpy())
    )
    again = evaluate_run(folder.root, "test")
    assert again["domain_auc"] == pytest.approx(metrics["test"]["domain_auc"], abs=1e-9)
    part = evaluate_run(folder.parts[0].root, "test")
    assert part["rows"] == metrics["clusters"][0]["test_rows"]


def test_a_killed_split_run_goes_on_with_the_same_bits(split, prepared, tmp_path):
    config, whole = split
    with pytest.raises(KillError):
        run_into(config, prepared, tmp_path / "cut", watcher=Dying(130))
    again = run_into(config, prepared, tmp_path / "cut", resume=True)
    assert again.metrics["digests"] == whole.metrics["digests"]
    assert again.metrics["test"] == whole.metrics["test"]


def test_reports_show_clusters(end_to_end, split):
    for result in (end_to_end, split[1]):
        page = write_report(result.folder.root).read_text()
        assert "clusters/report.html" in page
        inner = (result.folder.clusters / "report.html").read_text()
        assert inner.count("data:image/png;base64,") == 5
        assert "http" not in inner
        assert all(name in inner for name in load_assignment(result.folder.clusters).domains)
    assert "over separate models" in write_report(split[1].folder.root).read_text()


def test_finding_clusters_is_resumable_and_refuses_another_config(small, prepared, tmp_path):
    config = settings(small, "clustering.cluster_updates=3")
    whole = find_clusters(Job(config, prepared), tmp_path / "whole")
    assert whole.num_updates == 3
    with pytest.raises(KillError):
        find_clusters(Job(config, prepared, watcher=Dying(30)), tmp_path / "cut")
    assert not (tmp_path / "cut" / "assignment.json").exists()
    with pytest.raises(RunError, match="already holds a run; pass --resume"):
        find_clusters(Job(config, prepared), tmp_path / "cut")
    again = find_clusters(Job(config, prepared, resume=True), tmp_path / "cut")
    assert again == whole
    assert find_clusters(Job(config, prepared, resume=True), tmp_path / "cut") == whole
    other = settings(small, "clustering.cluster_updates=3", "training.seed=9")
    with pytest.raises(AssignmentError, match="is of another run: config is"):
        find_clusters(Job(other, prepared, resume=True), tmp_path / "cut")


def test_small_domains_are_left_out_and_served_by_the_default(small, prepared, tmp_path):
    counts = prepared.domain_rows["train"]
    least = sorted(counts.values())[3]
    config = settings(small, f"clustering.min_train_rows={least}", "clustering.cluster_updates=1")
    found = find_clusters(Job(config, prepared), tmp_path / "c")
    assert set(found.attached) == {name for name, n in counts.items() if n < least}
    assert {found.cluster_of(name) for name in found.attached} == {found.default_cluster}
    with np.load(tmp_path / "c" / "matrices.npz") as stored:
        missing = [name for name, row in zip(found.domains, stored["mi"], strict=True) if np.isnan(row).all()]
    assert set(missing) == set(found.attached)


def test_the_lookahead_gets_disjoint_rows_and_the_right_towers(small, prepared, tmp_path):
    seen = []

    def spying(config, _model, _optimisers, interval):
        assert interval == config.clustering.update_interval

        def look(plan, steps, evaluation, serving):
            seen.append((steps, evaluation, serving, torch.get_rng_state()))
            rng = np.random.default_rng(len(seen))
            D, R = plan.num_domains, len(plan.treatments)
            return LookaheadLosses(
                base=np.full(D, 0.5),
                after_single=0.5 - 0.01 * rng.random((D, D)),
                after_companions=0.5 - 0.01 * rng.random((D, D)),
                after_others=np.full((D, D), 0.5),
                after_treatments=0.5 - 0.01 * rng.random((R, D)),
            )

        return look

    config = settings(small, "clustering.cluster_updates=3")
    found = find_clusters(Job(config, prepared, spying), tmp_path / "c")
    D = 20 - len(found.attached)
    assert [serving for _, _, serving, _ in seen] == ["mean", "own", "own"]
    for steps, evaluation, _, _ in seen:
        assert len(steps.sizes) == len(evaluation.sizes) == D
        assert max(steps.sizes) == 64
        assert torch.equal(evaluation.labels, seen[0][1].labels)
        rows = [
            {tuple(r) for r in torch.cat([p.inputs.pairs, p.inputs.user_floats], dim=1).tolist()}
            for p in (steps, evaluation)
        ]
        if len(rows[1]) == len(evaluation.labels):  # rows that can be told apart
            assert not rows[0] & rows[1]
        starts = np.cumsum(steps.sizes) - steps.sizes
        own = [i for i, name in enumerate(found.domains) if name not in found.attached]
        assert steps.inputs.domain[starts].tolist() == own
    assert not torch.equal(seen[0][0].labels, seen[1][0].labels)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["clustering.version=none"], RunError, "model.towers is clusters, but clustering.version is none"),
        (
            ["model.towers=shared"],
            RunError,
            "clustering.version end_to_end needs a model with towers: clusters",
        ),
        (["clustering.num_clusters=30"], RulesError, "30"),
        (["clustering.min_train_rows=100000"], RulesError, "no domain has 100000 training"),
        (["clustering.warmup_batches=1000"], RunError, "ended after .* steps before the model could be"),
        (
            ["clustering.version=two_stage", "clustering.assignment=/nowhere/assignment.json"],
            AssignmentError,
            "/nowhere/assignment.json",
        ),
        (
            ["clustering.version=two_stage", "clustering.assignment=/nowhere/x.json"],
            AssignmentError,
            "expected assignment.json or the folder that holds it",
        ),
    ],
)
def test_refusals_of_runs(small, prepared, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        run_into(settings(small, *overrides), prepared, tmp_path / "r")


def test_a_model_without_towers_cannot_be_clustered(small, prepared, tmp_path):
    config = load_config(
        small.config, ["model={type: dcnv2}", "clustering.version=split", "clustering.min_train_rows=100",
                       "clustering.min_eval_rows=10", "clustering.num_clusters=3"]
    )  # fmt: skip
    with pytest.raises(RulesError, match="model dcnv2 has no towers"):
        run_into(config, prepared, tmp_path / "r")


def test_an_assignment_of_other_domains_is_refused(small, prepared, tmp_path, end_to_end):
    given = json.loads((end_to_end.folder.clusters / "assignment.json").read_text())
    text = json.dumps(given)
    for name in prepared.schema.domains:
        text = text.replace(f'"{name}"', f'"x{name}"')
    (tmp_path / "assignment.json").write_text(text)
    config = settings(small, "clustering.version=two_stage", f"clustering.assignment={tmp_path}")
    with pytest.raises(AssignmentError, match="knows none of the 20 domains"):
        run_into(config, prepared, tmp_path / "r")


def test_a_split_run_of_another_assignment_is_not_gone_on_with(split, small, prepared, tmp_path):
    config = split[0]
    with pytest.raises(KillError):
        run_into(config, prepared, tmp_path / "cut", watcher=Dying(60))
    other = settings(
        small, "clustering.version=split", "clustering.method=random", "clustering.num_clusters=3"
    )
    with pytest.raises((CheckpointError, AssignmentError), match="of another run"):
        run_into(other, prepared, tmp_path / "cut", resume=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clustering.versoin=split", r"unknown key clustering\.versoin; did you mean version\?"),
        ("clustering.num_clusters=0", "clustering.num_clusters: .*auto or a whole number from 1 up, got 0"),
        ("clustering={version: end_to_end, method: tag}", "end_to_end re-clusters by cdc; method tag"),
        ("clustering={version: end_to_end, assignment: a}", "goes with version two_stage or split only"),
        ("clustering={version: split, method: manual}", "method manual needs groups"),
        ("clustering.history_weight=1", r"clustering\.history_weight: .*less than 1"),
    ],
)
def test_configs_that_cannot_work_are_refused(small, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(small.config, [override])
