"""A search end to end: trials, budget, resume, pruning, what it leaves behind."""

import csv

import pytest

from training.config import load_config
from training.data.prepared import PreparedDataset
from training.engine.errors import DivergedError
from training.engine.fit import run_training
from training.track import Quiet
from training.tune import search as tune_search
from training.tune.errors import TuneError
from training.tune.report import write_search_report
from training.tune.search import Search, objective_value, run_search
from training.tune.space import load_space

GIVEN = ["training.epochs=1", "training.evaluations_per_epoch=2", "training.batch_size=1024"]
SPACE = """\
optimiser.dense.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
model.expert_widths: {choices: [[4], [16], [8, 4]]}
"""


@pytest.fixture
def search_of(small, tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)

    def make(name="out", *more, seed=0):
        space, prepared = load_space(tmp_path / "space.yaml"), PreparedDataset.open(small.prepared)
        return Search(small.config, [*GIVEN, *more], space, prepared, tmp_path / name, seed)

    return make


@pytest.fixture
def no_training(monkeypatch):
    """Runs whose validation value is that of a formula of their config; no test figures at all."""

    def made(config, _prepared, _out, *, resume, watcher):
        value = 1 - abs(config.optimiser.dense.lr - 0.004)
        for check in (1, 2):
            watcher.validated(check / 2, value - 0.1 / check)
        valid = {"domain_auc": value, "total_auc": value, "rows": 1}
        return type("Result", (), {"metrics": {"raw": {"valid": valid}}})

    monkeypatch.setattr(tune_search, "run_training", made)


def lines(search):
    with (search.out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_trains_and_leaves_the_best_config(search_of, small):
    search = search_of()
    study = run_search(search, 2, resume=False, watcher=Quiet())
    rows = lines(search)
    assert [row["trial"] for row in rows] == ["0", "1"]
    own = rows[0]
    assert (own["optimiser.dense.lr"], own["model.expert_widths"]) == ("0.005", "[16]")
    best = load_config(search.out / "best.yaml")
    values = [float(row["value"]) for row in rows]
    winner = rows[values.index(max(values))]
    assert best.optimiser.dense.lr == pytest.approx(float(winner["optimiser.dense.lr"]))
    assert best.training.batch_size == 1024
    plain = run_training(search.base, search.prepared, search.out / "plain")
    valid = plain.metrics["raw"]["valid"]
    assert values[0] == pytest.approx((valid["domain_auc"] + valid["total_auc"]) / 2)
    page = write_search_report(search, study).read_text()
    assert "2 trials: 2 whole, 0 ended early, 0 failed" in page
    assert "At least 4 whole trials" in page


@pytest.mark.usefixtures("no_training")
def test_a_cut_search_draws_what_an_unbroken_one_would(search_of):
    whole, cut = search_of("whole"), search_of("cut")
    study = run_search(whole, 8, resume=False, watcher=Quiet())
    run_search(cut, 3, resume=False, watcher=Quiet())
    run_search(cut, 8, resume=True, watcher=Quiet())
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in lines(whole)]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in lines(cut)] == strip
    assert len({row["optimiser.dense.lr"] for row in strip}) == 8
    page = write_search_report(whole, study).read_text()
    assert page.count("data:image/png;base64,") == 2


@pytest.mark.usefixtures("no_training")
def test_trials_behind_the_median_are_ended_and_count(search_of):
    search = search_of()
    study = run_search(search, 12, resume=False, watcher=Quiet())
    states = [row["state"] for row in lines(search)]
    assert len(states) == 12
    assert states[:5] == ["complete"] * 5
    assert "pruned" in states
    assert "ended early" in write_search_report(search, study).read_text()


def test_a_trial_that_a_kill_cut_is_made_again_in_its_folder(search_of, no_training, monkeypatch):
    search, real = search_of(), tune_search.run_training

    def killed(config, prepared, out, **options):
        if out.name == "0001":
            raise KeyboardInterrupt
        return real(config, prepared, out, **options)

    monkeypatch.setattr(tune_search, "run_training", killed)
    with pytest.raises(KeyboardInterrupt):
        run_search(search, 4, resume=False, watcher=Quiet())
    seen = []
    monkeypatch.setattr(
        tune_search,
        "run_training",
        lambda config, prepared, out, **options: (
            seen.append(out.name),
            real(config, prepared, out, **options),
        )[1],
    )
    run_search(search, 4, resume=True, watcher=Quiet())
    assert seen == ["0001", "0002", "0003"]
    assert [row["trial"] for row in lines(search)] == ["0", "1", "2", "3"]


def test_a_failed_trial_counts_with_its_message(search_of, no_training, monkeypatch):
    search, real = search_of(), tune_search.run_training

    def failing(config, prepared, out, **options):
        if out.name == "0000":
            raise DivergedError("the loss is nan")
        return real(config, prepared, out, **options)

    monkeypatch.setattr(tune_search, "run_training", failing)
    with pytest.raises(TuneError, match=r"none of 1 trials finished; see trials\.csv"):
        run_search(search, 1, resume=False, watcher=Quiet())
    run_search(search, 2, resume=True, watcher=Quiet())
    assert [(row["state"], row["error"]) for row in lines(search)] == [
        ("fail", "the loss is nan"),
        ("complete", ""),
    ]


@pytest.mark.usefixtures("no_training")
def test_another_search_in_the_folder_is_refused(search_of):
    run_search(search_of(), 1, resume=False, watcher=Quiet())
    with pytest.raises(TuneError, match="already holds a search; pass --resume"):
        run_search(search_of(), 2, resume=False, watcher=Quiet())
    with pytest.raises(TuneError, match=r"holds a search with another config$"):
        run_search(search_of("out", "training.patience=7"), 2, resume=True, watcher=Quiet())
    with pytest.raises(TuneError, match=r"holds a search with another seed$"):
        run_search(search_of(seed=1), 2, resume=True, watcher=Quiet())


def test_the_objective_is_the_watched_metric():
    valid = {"domain_auc": 0.6, "total_auc": 0.8, "logloss": 0.3, "gauc": None, "rows": 9}
    assert objective_value(valid, "mean_auc") == pytest.approx(0.7)
    assert objective_value(valid, "logloss") == 0.3
    with pytest.raises(TuneError, match="validation metric 'gauc' is undefined: 9 rows"):
        objective_value(valid, "gauc")


@pytest.mark.parametrize(("monitor", "best"), [("logloss", min), ("domain_auc", max)])
def test_the_direction_is_that_of_the_monitor(search_of, monkeypatch, monitor, best):
    def made(config, _prepared, _out, **_options):
        valid = {monitor: config.optimiser.dense.lr, "rows": 1}
        return type("Result", (), {"metrics": {"raw": {"valid": valid}}})

    monkeypatch.setattr(tune_search, "run_training", made)
    search = search_of("out", f"training.monitor={monitor}")
    study = run_search(search, 4, resume=False, watcher=Quiet())
    assert study.best_value == pytest.approx(best(float(row["value"]) for row in lines(search)))
