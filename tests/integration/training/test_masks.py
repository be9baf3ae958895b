"""Runs with masks: updates, exact resume, best masks, artefacts, versions, worded refusals."""

import json

import numpy as np
import pytest

from tests.support.runs import Dying, KillError, run_into
from training.clustering.assignment import load_assignment
from training.config import ConfigError, load_config
from training.engine.artefacts import load_model
from training.engine.checkpoint import load_tensors, weights_digest
from training.engine.errors import RunError
from training.engine.fit import evaluate_run
from training.masks.archive import load_masks, save_masks
from training.masks.errors import MaskSearchError
from training.masks.mask_run import MaskRun
from training.masks.rows import TrainRows
from training.models.aread_cost import AreadSizes, saved_ratio, served_cost
from training.models.mask import PyramidMask, PyramidShape
from training.report import write_report
from training.report_masks import base_mask_shares, overlap
from training.track import read_log

AREAD = (
    "model={type: aread, base: {type: mmoe, num_experts: 2, expert_widths: [16], gate_input: domain}, "
    "expert_widths: [[8], [8], [4]], gate_dim: 8, num_cross_layers: 2, dropout: 0.1, "
    "inputs: {tables: [{dim: 8, unknown_rate: 0.02}]}}",
    "masks={enabled: true, warmup_batches: 8, update_interval: 12, rows: 16, candidates: 4, "
    "target_density: 0.6, target_updates: 2, settle_ratio: 0.2}",
)
BITS = "ranker.gates.mask_bits"


def settings(small, *overrides):
    return load_config(small.config, [*AREAD, "training.epochs=1", *overrides])


def quick(small, *overrides):
    """A run of a few large steps with one update."""
    return settings(
        small, "training.batch_size=2048", "masks.warmup_batches=2", "masks.max_updates=1", *overrides
    )


@pytest.fixture(scope="module")
def searched(small, prepared, tmp_path_factory):
    return run_into(settings(small), prepared, tmp_path_factory.mktemp("runs") / "masks")


def updates(result):
    return [e for e in read_log(result.folder.log) if e["event"] == "masks"]


def large_enough(prepared, names, least=50):
    """Indices of the domains with so many train rows; 50 is the default of masks.min_rows."""
    rows = prepared.domain_rows["train"]
    return [d for d, name in enumerate(prepared.schema.domains) if name in names and rows[name] >= least]


def test_updates_come_after_warm_up_at_intervals_and_stop_before_the_end(searched):
    events = updates(searched)
    said = searched.metrics["masks"]
    total = searched.metrics["steps"]

    assert [e["step"] for e in events] == list(range(8, int(0.8 * total) + 1, 12))
    assert said["steps"] == [e["step"] for e in events]
    assert said["num_updates"] == len(events) >= 3
    assert [e["num_candidates"] for e in events][:2] == [3, 3]  # int(4 * .99 ** k)
    assert [e["target_density"] for e in events][:3] == pytest.approx([0.8, 0.6, 0.6])
    assert all(e["density"] <= e["target_density"] for e in events)
    assert all(e["spread"] > 0 for e in events)


def test_the_masks_of_the_best_weights_are_saved_and_served(searched, prepared):
    folder = searched.folder
    record = load_masks(folder.root / "masks")
    stored = load_tensors(folder.model)["state_dict"][BITS].numpy()
    best = searched.metrics["masks"]["best_update"]
    steps = searched.metrics["masks"]["steps"]

    np.testing.assert_array_equal(record.masks, stored)
    assert best == sum(step < searched.metrics["best_step"] for step in steps)
    np.testing.assert_array_equal(record.history[best - 1], stored)
    assert record.domains == prepared.schema.domains
    assert record.searched.tolist() == large_enough(prepared, record.domains)
    assert record.masks[-1].all()  # unknown domains use every edge
    told = searched.metrics["masks"]["domains"]
    for d, name in enumerate(record.domains):
        mask = record.mask(d)
        assert mask.is_valid
        assert told[name] == {"density": mask.density, "experts": list(mask.num_used)}


def test_a_model_with_masks_is_read_back(searched, prepared):
    model = load_model(searched.folder.model, prepared.schema)

    assert weights_digest(model.state_dict()) == searched.metrics["digests"]["weights"]
    again = evaluate_run(searched.folder.root, "test")
    assert again["total_auc"] == pytest.approx(searched.metrics["test"]["total_auc"], abs=1e-9)


def test_the_report_shows_masks(searched):
    page = write_report(searched.folder.root).read_text()

    assert "<h2>Masks</h2>" in page
    assert "Pyramid of 3/6/12 experts, 105 edges; method search, cheap" in page
    for picture in ("density and experts over updates", "edges by domain", "overlap of masks"):
        assert f"<img alt='{picture}'" in page
    for name, told in searched.metrics["masks"]["domains"].items():
        if told["density"] == 1.0 and name in searched.metrics["test"]["domains"]:
            assert f"<td>{name}</td>" in page


def test_the_report_counts_what_masks_could_save(searched, prepared):
    """The mean is that of the domains' masks by the model's sizes."""
    page = write_report(searched.folder.root).read_text()
    record = load_masks(searched.folder.root / "masks")
    sizes = AreadSizes.of(load_model(searched.folder.model, prepared.schema).ranker)
    shares = [saved_ratio(sizes, record.mask(d)) for d in range(len(record.domains))]

    assert f"the {served_cost(sizes).total:,} multiply-adds of a row" in page
    assert f"<td>masks of this run</td><td>{np.mean(shares):.4f}</td>" in page
    assert "were base experts masked too (estimate)" in page
    assert "domain embedding as a constant, whatever the mask" in page
    assert all(0 <= share < 1 for share in base_mask_shares(sizes, record))


def test_overlap_by_hand():
    bits = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)

    assert overlap(bits)[0].tolist() == [1.0, 1 / 3, 0.0]
    assert overlap(bits)[2, 2] == 0.0


@pytest.mark.parametrize("after", [5, 33])
def test_a_killed_run_ends_with_the_same_masks(after, small, prepared, searched, tmp_path):
    config = settings(small)
    with pytest.raises(KillError):
        run_into(config, prepared, tmp_path, watcher=Dying(after))

    resumed = run_into(config, prepared, tmp_path, resume=True)

    assert resumed.metrics["digests"] == searched.metrics["digests"]
    mine, other = (load_masks(r.folder.root / "masks") for r in (resumed, searched))
    np.testing.assert_array_equal(mine.history, other.history)
    strip = ("seconds", "time_s")
    first, second = (
        [{k: v for k, v in e.items() if k not in strip} for e in updates(r)] for r in (resumed, searched)
    )
    assert first == second
    assert resumed.metrics["masks"]["best_update"] == searched.metrics["masks"]["best_update"]


def test_random_masks_are_drawn_once(small, prepared, tmp_path):
    result = run_into(
        quick(small, "masks.method=random", "masks.target_density=0.4"),
        prepared,
        tmp_path,
    )

    (event,) = updates(result)
    assert event["score"] is None
    assert event["density"] == pytest.approx(0.4, abs=0.05)
    record = load_masks(tmp_path / "masks")
    assert len(np.unique(record.masks[record.searched], axis=0)) == len(record.searched)


def test_method_none_trains_each_head_with_every_edge(small, prepared, tmp_path):
    result = run_into(quick(small, "masks.method=none"), prepared, tmp_path)

    (event,) = updates(result)
    assert (event["density"], event["changed_ratio"]) == (1.0, 0.0)
    assert load_masks(tmp_path / "masks").masks.all()


def test_small_domains_keep_every_edge(small, prepared, tmp_path):
    rows = prepared.domain_rows["train"]
    least = sorted(rows.values())[len(rows) // 2]

    run_into(quick(small, f"masks.min_rows={least}"), prepared, tmp_path)

    record = load_masks(tmp_path / "masks")
    left_out = [d for d, name in enumerate(record.domains) if rows[name] < least]
    assert left_out
    assert record.masks[left_out].all()
    assert not record.masks[record.searched].all(axis=1).any()


def test_masks_are_tuned_on_copied_clicks_too(small, prepared, tmp_path, searched):
    copied = "augment={ratio: 0.1, cold_popularity: 0.5, small_share: 0.05, large_share: 0.1}"
    result = run_into(quick(small, copied), prepared, tmp_path)

    assert len(updates(result)) == 1
    first = load_masks(tmp_path / "masks").history[0]
    assert not np.array_equal(first, load_masks(searched.folder.root / "masks").history[0])


TWO_STAGE = (
    "clustering={version: two_stage, method: random, num_clusters: 3}",
    "model.group=cluster",
)


def test_domains_of_a_cluster_start_with_one_mask(small, prepared, tmp_path, monkeypatch):
    seen = {}
    make = MaskRun.make_hook

    def spied(self, *arguments):
        hook = make(self, *arguments)
        seen.update(hook._start)
        return hook

    monkeypatch.setattr(MaskRun, "make_hook", spied)
    result = run_into(quick(small, *TWO_STAGE, "masks.start=clusters"), prepared, tmp_path)

    clusters = load_assignment(result.folder.clusters)
    by_cluster = {}
    for d, mask in seen.items():
        assert mask == by_cluster.setdefault(clusters.cluster_of(prepared.schema.domains[d]), mask)
    assert len(set(by_cluster.values())) == 3
    assert set(result.metrics) >= {"masks", "clustering"}


def test_split_runs_have_masks_by_part(small, prepared, tmp_path):
    result = run_into(
        quick(
            small,
            "clustering={version: split, method: random, num_clusters: 2}",
        ),
        prepared,
        tmp_path,
    )

    for part in result.folder.parts:
        record = load_masks(part.root / "masks")
        sources = json.loads(part.cluster.read_text())["sources"]
        assert record.searched.tolist() == large_enough(prepared, sources)
        assert "masks" in json.loads(part.metrics.read_text())


def test_drawn_rows_are_the_domains_own_and_repeat_evenly(prepared):
    rows = TrainRows(prepared, most_rows=40, seed=0)
    for domain in (0, 3):
        size = rows.num_rows(domain)
        drawn = rows.draw(domain, 2 * size + 1, np.random.default_rng(0))

        assert (drawn.inputs.domain == domain).all()
        assert drawn.sizes.tolist() == [2 * size + 1]
        again = rows.draw(domain, 2 * size + 1, np.random.default_rng(0))
        assert (drawn.labels == again.labels).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model={type: dcnv2}",), "masks.enabled needs a model of type aread; model.type is dcnv2"),
        (("masks.start=clusters",), "masks.start clusters needs clustering.version two_stage; it is none"),
    ],
)
def test_configs_that_do_not_go_together_are_refused(overrides, message, small, prepared, tmp_path):
    with pytest.raises(RunError, match=message):
        run_into(settings(small, *overrides), prepared, tmp_path)


def test_a_start_without_a_search_is_refused(small):
    with pytest.raises(ConfigError, match="start clusters is where a search begins; method random has none"):
        settings(small, "masks.start=clusters", "masks.method=random")


def test_data_without_large_enough_domains_is_refused(small, prepared, tmp_path):
    with pytest.raises(MaskSearchError, match=r"no domain has masks.min_rows 1000000 train rows"):
        run_into(settings(small, "masks.min_rows=1000000"), prepared, tmp_path)


def test_masks_without_a_model_are_refused(small, prepared, tmp_path):
    with pytest.raises(MaskSearchError, match="no model was trained, so there are no masks to save"):
        MaskRun(settings(small), prepared, tmp_path).on_trained()


def test_masks_that_cannot_be_read_are_refused(tmp_path, searched):
    with pytest.raises(MaskSearchError, match=r"masks.npz: no such file; runs with masks.enabled have one"):
        load_masks(tmp_path)
    (tmp_path / "masks.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(MaskSearchError, match=r"masks.npz: damaged or not of this program \(BadZipFile\)"):
        load_masks(tmp_path)


def test_masks_of_a_run_without_updates_are_read_back(tmp_path):
    shape = PyramidShape((2, 3), base_width=2)
    save_masks(
        tmp_path, shape=shape, domains=["a"], searched=[0], masks=[PyramidMask.full(shape)] * 2, history=[]
    )

    record = load_masks(tmp_path)

    assert record.shape == shape
    assert record.history.shape == (0, 2, shape.num_edges)
    assert record.mask(0) == PyramidMask.full(shape)
