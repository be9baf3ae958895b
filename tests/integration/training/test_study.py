"""A study end to end: runs, tables, resume, refusals, failures, children."""

import json
import math
import sys
from types import SimpleNamespace

import polars as pl
import pytest

from training import cli
from training.engine.errors import DivergedError
from training.study import run as study_run
from training.study.errors import StudyRunError
from training.study.plan import load_plan
from training.study.report import write_study
from training.study.run import run_study
from training.track import Quiet

STUDY = """\
name: widths
seeds: [1, 2]
reference: [narrow]
domains: [d03]
set: {training.epochs: 1, training.evaluations_per_epoch: 1, training.batch_size: 2048}
variants:
  - {name: narrow, config: small.yaml, set: {model.expert_widths: [4]}}
  - {name: wide, config: small.yaml}
"""


class Heard(Quiet):
    """Keeps the lines."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def home(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "small.yaml").write_text(small.config.read_text())
    (folder / "study.yaml").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def made(home, small):
    """The study with its runs, what it said, and its tables."""
    out, heard = home / "out", Heard()
    out.mkdir()
    (out / "prepared").symlink_to(small.prepared)
    tables = run_study(load_plan(home / "study.yaml"), out, small.raw, watcher=heard)
    return SimpleNamespace(out=out, lines=heard.lines, tables=tables)


@pytest.fixture
def plan_of(home):
    def load(old="", new=""):
        (home / "other.yaml").write_text(STUDY.replace(old, new))
        return load_plan(home / "other.yaml")

    return load


def metrics(out, variant, seed):
    return json.loads((out / variant / f"seed-{seed}" / "metrics.json").read_text())


def test_every_run_is_a_whole_run_folder_on_the_same_data(made):
    for variant in ("narrow", "wide"):
        for seed in (1, 2):
            folder = made.out / variant / f"seed-{seed}"
            assert metrics(made.out, variant, seed)["seed"] == seed
            assert (folder / "report.html").is_file()
            assert (folder / "prepared").resolve() == (made.out / "prepared").resolve()


def test_the_tables_hold_means_and_paired_differences_of_the_runs(made):
    tables = json.loads((made.out / "study.json").read_text())
    assert tables == made.tables
    auc = {
        (variant, seed): metrics(made.out, variant, seed)["test"]["domain_auc"]
        for variant in ("narrow", "wide")
        for seed in (1, 2)
    }
    wide = tables["variants"]["wide"]["test"]["domain_auc"]
    assert wide["values"] == [auc["wide", 1], auc["wide", 2]]
    assert wide["mean"] == pytest.approx((auc["wide", 1] + auc["wide", 2]) / 2)
    assert wide["sd"] == pytest.approx(abs(auc["wide", 1] - auc["wide", 2]) / math.sqrt(2))
    (line,) = tables["differences"]
    assert (line["variant"], line["reference"]) == ("wide", "narrow")
    found = line["test"]["domain_auc"]
    first, second = (auc["wide", seed] - auc["narrow", seed] for seed in (1, 2))
    assert found["mean"] == pytest.approx((first + second) / 2)
    # t with one degree of freedom is Cauchy: its 97.5 % point is tan(0.475 pi).
    half = math.tan(0.475 * math.pi) * abs(first - second) / 2
    assert (found["low"], found["high"]) == pytest.approx((found["mean"] - half, found["mean"] + half))
    assert found["won"] == (first > 0) + (second > 0)


def test_valid_figures_are_of_raw_scores_and_domains_are_counted(made):
    raw = metrics(made.out, "wide", 1)["raw"]["valid"]["logloss"]
    assert made.tables["variants"]["wide"]["valid"]["logloss"]["values"][0] == raw
    tested = metrics(made.out, "wide", 1)["test"]["domains"]
    domains = made.tables["domains"]
    assert {name: size["test_rows"] for name, size in domains.items()} == {
        name: tested[name]["rows"] for name in domains
    }
    train = [size["train_rows"] for size in domains.values()]
    assert train == sorted(train, reverse=True)
    assert sum(size["small"] for size in domains.values()) == 10


def test_the_small_domains_are_those_of_minor10_auc(made):
    told = metrics(made.out, "wide", 1)["test"]
    small = [told["domains"][name] for name, size in made.tables["domains"].items() if size["small"]]
    known = [d for d in small if d["auc"] is not None]
    mean = sum(d["auc"] * d["rows"] for d in known) / sum(d["rows"] for d in known)
    assert mean == pytest.approx(told["minor10_auc"])


def test_the_report_and_the_markdown_hold_every_variant(made):
    page = (made.out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    for text in ("narrow", "wide", "(small)", "wide against narrow: in domain AUC"):
        assert text in page
    assert page.index("<td>d03</td>") < page.index("<td>d00</td>")
    told = (made.out / "study.md").read_text()
    assert "| wide | 2 | 0." in told
    assert "| wide | narrow | " in told


def test_progress_says_which_run_of_how_many(made):
    assert made.lines[0] == "run 1 of 4: narrow, seed 1"
    assert any("4 of 4 runs done" in line for line in made.lines)


def test_finished_runs_are_kept_and_a_cut_one_is_made_again(made, home, small):
    kept = made.out / "narrow" / "seed-1" / "metrics.json"
    cut = made.out / "wide" / "seed-2" / "metrics.json"
    before, stamp = json.loads(cut.read_text()), kept.stat().st_mtime_ns
    cut.unlink()
    heard = Heard()
    run_study(load_plan(home / "study.yaml"), made.out, None, resume=True, watcher=heard)
    assert heard.lines[0] == "3 of 4 runs are finished and kept"
    assert kept.stat().st_mtime_ns == stamp
    again = json.loads(cut.read_text())
    assert again["digests"] == before["digests"]
    assert again["test"] == before["test"]


def test_without_resume_nothing_is_touched(made, home):
    with pytest.raises(StudyRunError, match=r"narrow/seed-1: already holds a run; pass --resume"):
        run_study(load_plan(home / "study.yaml"), made.out, None, watcher=Quiet())


def test_runs_of_another_config_are_refused_with_the_key(made, plan_of):
    plan = plan_of("model.expert_widths: [4]", "model.expert_widths: [4], optimiser.dense.lr: 0.002")
    with pytest.raises(StudyRunError) as refused:
        run_study(plan, made.out, None, resume=True, watcher=Quiet())
    text = "holds a run of another config: optimiser.dense.lr is 0.005 there and 0.002 in the study"
    assert text in str(refused.value)
    with pytest.raises(StudyRunError, match="of another config"):
        write_study(plan, made.out)


def test_runs_of_other_data_are_refused(made, home, tmp_path, monkeypatch):
    plan = load_plan(home / "study.yaml")
    path = made.out / "wide" / "seed-1" / "metrics.json"
    whole = path.read_text()
    digest = json.loads(whole)["digests"]["data"]
    path.write_text(whole.replace(digest, "f" * 64))
    try:
        with pytest.raises(StudyRunError, match="holds a run of other data: data ffffffffffff there"):
            run_study(plan, made.out, None, resume=True, watcher=Quiet())
    finally:
        path.write_text(whole)
    monkeypatch.setattr(study_run, "open_data", lambda *_: SimpleNamespace(digest=lambda: "e" * 64))
    with pytest.raises(StudyRunError, match=r"was made of other data: digest .* there, eeeeeeeeeeee in"):
        run_study(plan, made.out, tmp_path, resume=True, watcher=Quiet())


def test_a_study_without_data_or_runs_says_so(home, plan_of, made, tmp_path):
    plan = load_plan(home / "study.yaml")
    with pytest.raises(StudyRunError, match="no prepared data there; give --data"):
        run_study(plan, tmp_path, None, watcher=Quiet())
    with pytest.raises(StudyRunError, match="no finished run of study widths"):
        write_study(plan, tmp_path)
    with pytest.raises(StudyRunError, match="domains: 'd99' is no domain of the data; it has d00, d01"):
        write_study(plan_of("[d03]", "[d99]"), made.out)


def test_a_failed_run_is_told_and_the_others_are_made(home, small, tmp_path, monkeypatch):
    real = study_run.run_training

    def failing(config, *arguments, **options):
        if config.name == "wide":
            raise DivergedError("the loss is nan")
        return real(config, *arguments, **options)

    monkeypatch.setattr(study_run, "run_training", failing)
    (tmp_path / "prepared").symlink_to(small.prepared)
    plan = load_plan(home / "study.yaml")
    tables = run_study(plan, tmp_path, None, num_seeds=1, watcher=Quiet())
    assert tables["failed"] == {"wide, seed 1": "the loss is nan"}
    assert list(tables["variants"]) == ["narrow"]
    assert tables["differences"] == []
    assert "Failed: wide, seed 1: the loss is nan" in (tmp_path / "study.md").read_text()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "prepared").symlink_to(small.prepared)
    with pytest.raises(StudyRunError, match="all 1 runs failed; the first is wide, seed 1: the loss is nan"):
        run_study(plan, tmp_path / "b", None, num_seeds=1, only=["wide"], watcher=Quiet())


@pytest.mark.slow
def test_child_processes_give_the_same_scores(made, home, small, tmp_path):
    (tmp_path / "prepared").symlink_to(small.prepared)
    plan = load_plan(home / "study.yaml")
    run_study(plan, tmp_path, None, num_seeds=1, only=["narrow"], jobs=2, watcher=Quiet())
    ours, theirs = (
        pl.read_parquet(out / "narrow" / "seed-1" / "predictions" / "test.parquet")
        for out in (made.out, tmp_path)
    )
    assert ours.equals(theirs)


def test_the_command_makes_the_report_again_without_training(made, home, monkeypatch, capfd):
    (made.out / "report.html").unlink()
    line = ["study", "--study", home / "study.yaml", "--out", made.out, "--report-only"]
    monkeypatch.setattr(sys, "argv", ["ctr-train", *map(str, line)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capfd.readouterr().out
    assert stop.value.code == 0
    assert (made.out / "report.html").is_file()
    assert "wide against narrow: in domain AUC" in told
