"""Planted clusters are recovered, and the scan finds their number."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import silhouette_score  # type: ignore[import-untyped,unused-ignore]
from typer import Typer
from typer.testing import CliRunner

from training.clustering import planted
from training.clustering.choose_k import choose_num_clusters, default_scan
from training.clustering.errors import RulesError
from training.clustering.gain import Matrices
from training.clustering.planted import failures, recovered_shares, recovery, spec_settings
from training.clustering.state import start, update

SETTINGS = {setting.name: setting for setting in spec_settings()}


@pytest.mark.parametrize(
    "name", ["D 12, K 3 equal", "D 20, K 5 equal", "D 8, K 2 equal, signed", "first-order, D 12, K 3"]
)
def test_equal_clusters_are_recovered_at_once(name):
    """Three seeds of the settings that must be perfect."""
    assert recovered_shares(SETTINGS[name], 3) == [1.0] * 6


def test_fresh_batches_hide_the_clusters():
    """The mistake of A3: another batch per row, and nothing is found."""
    found = recovered_shares(SETTINGS["D 12, K 3, fresh batch per row"], 1)
    assert [found[t] for t in planted.SHOWN_UPDATES] == [0.0] * 4


def test_a_run_depends_on_its_seed_alone():
    """Same seed, same scores."""
    setting = SETTINGS["D 12, K 3 sizes 6/4/2"]
    assert recovery(setting, 7) == recovery(setting, 7)


def test_acceptance_line():
    """Perfect passes; each way to miss it is named."""
    good = {name: [1.0] * 6 for name in SETTINGS}
    assert failures(good) == []
    assert failures(good | {"D 20, K 5 equal": [0.9, 1, 1, 1, 1, 1]})[0].startswith("D 20, K 5 equal")
    assert failures(good | {"D 12, K 3 equal": [1, 1, 1, 0.95, 1, 1]})
    assert failures(good | {"D 12, K 3 sizes 6/4/2": [1, 1, 1, 1, 1, 0.85]})
    assert not failures(good | {"D 8, K 2 equal, signed": [0, 0, 0, 0, 0, 0.9]})


@pytest.mark.parametrize(
    ("share", "code", "verdict"), [(1.0, 0, "acceptance: met"), (0.5, 1, "acceptance: NOT met")]
)
def test_the_command_says_if_it_is_met(monkeypatch, share, code, verdict):
    """Exit code and last lines."""
    monkeypatch.setattr(planted, "recovered_shares", lambda setting, count: [share] * 6)
    app = Typer()
    app.command()(planted.main)
    result = CliRunner().invoke(app, ["--seeds", "20"])
    assert result.exit_code == code
    assert verdict in result.output
    assert "D 12, K 3, s = .5" in result.output


def first_update(name, seed):
    """State after one update of a planted run."""
    setting = SETTINGS[name]
    rng = np.random.default_rng(seed)
    data = planted.make_planted(setting, rng)
    theta = planted._trained(np.zeros(16), data, rng, steps=60, rate=0.3)
    rules = replace(setting.rules, num_clusters=3, max_treatment_size=16)
    state = start(np.ones(len(data.truth)), rules)
    plan = state.plan()
    return update(state, plan, planted.measure(setting, data, theta, plan, rng)), data.truth


@pytest.mark.parametrize(("name", "K"), [("D 12, K 3 equal", 3), ("D 20, K 5 equal", 5)])
def test_the_scan_finds_the_planted_number(name, K):
    """The rule names K, and its evidence shows why."""
    state, truth = first_update(name, 0)
    made = state.clusters
    matrices = Matrices(mi=made.mi, mh=made.mh, mc=made.mc, shares=state.shares)
    choice = choose_num_clusters(matrices, made.mt, num_bootstraps=5)
    assert choice.num_clusters == K
    lines = {line.num_clusters: line for line in choice.evidence}
    assert tuple(lines) == default_scan(len(truth))
    assert lines[K].stability == 1.0
    assert lines[K].silhouette == pytest.approx(silhouette_score(made.mc, truth, metric="precomputed"))
    assert lines[K].smallest == 4
    assert lines[K].mean_gain > 0


def test_scan_edges():
    """What is scanned by default, and what cannot be."""
    assert default_scan(2) == (2,)
    assert default_scan(4) == (3,)
    assert default_scan(300)[0] == 3
    assert default_scan(300)[-1] == 76
    assert len(default_scan(300)) == 12
    m = Matrices(mi=np.zeros((4, 4)), mh=np.zeros((4, 4)), mc=np.ones((4, 4)) - np.eye(4), shares=np.zeros(4))
    flat = np.ones((6, 4))
    flat_choice = choose_num_clusters(m, flat, scan=(4, 3), num_bootstraps=1)
    assert [line.stability for line in flat_choice.evidence] == [0.0, 0.0]
    assert np.isnan(flat_choice.evidence[1].silhouette)
    with pytest.raises(RulesError, match=r"scan \[\] with 10 bootstraps; each needs at least one"):
        choose_num_clusters(m, flat, scan=())
    with pytest.raises(RulesError, match="K is 5; with 4 domains"):
        choose_num_clusters(m, flat, scan=(5,))
