"""Reading an experiment from joined rows: figures by hand, several arms, refusals, the report."""

import json

import numpy as np
import polars as pl
import pytest

from training.ab.analyse import analyse
from training.ab.calibration import ALL, ratio_interval
from training.ab.errors import AbDataError
from training.ab.report import JSON_FILE, REPORT_FILE, sentences, write_analysis
from training.ab.rows import read_experiment
from training.ab.sequential import half_width, mixture_variance
from training.cli import app, guarded

DAY_MS = 86_400_000


def rows_of(folder, rows, **columns):
    """A parquet file of rows (unit, arm, clicks out of shows); one row per show."""
    out = []
    for unit, arm, clicks, shows in rows:
        one = {"unit": unit, "arm": arm}
        out += [{**one, "label": int(n < clicks), "time_ms": n * DAY_MS} for n in range(shows)]
    frame = pl.DataFrame(out).with_columns(
        experiment=pl.lit("e"), domain=pl.lit("home"), score=pl.lit(0.5), **columns
    )
    frame.write_parquet(folder / "rows.parquet")
    return folder


@pytest.fixture
def by_hand(tmp_path):
    return rows_of(
        tmp_path,
        [
            ("a", "control", 1, 2),
            ("b", "control", 3, 4),
            ("c", "control", 1, 4),
            ("d", "treatment", 2, 4),
            ("e", "treatment", 4, 4),
            ("x", "control", 5, 5),
            ("x", "treatment", 5, 5),
        ],
    )


def test_figures_by_hand(by_hand):
    analysis = analyse(by_hand, looks=2, planned_lift=0.5)
    control, treatment = analysis.arms
    assert (control.name, control.units, control.rows, control.clicks, control.ctr) == (
        "control",
        3,
        10,
        5,
        0.5,
    )
    assert (treatment.units, treatment.rows, treatment.ctr) == (2, 8, 0.75)
    assert analysis.crossed_units == 1
    assert analysis.sample_ratio.units == {"control": 3, "treatment": 2}
    # variances: 0.03 (three units, worked out in test_rate_and_srm) and 2/1 * 2 * 1 / 64 = 0.0625
    (comparison,) = analysis.comparisons
    error = np.sqrt(0.03 + 0.0625)
    assert comparison.difference == pytest.approx(0.25)
    assert comparison.high == pytest.approx(0.25 + 1.959963985 * error)
    assert comparison.lift == pytest.approx(0.5)
    log_error = np.sqrt(0.03 / 0.25 + 0.0625 / 0.5625)
    assert comparison.lift_high == pytest.approx(1.5 * np.exp(1.959963985 * log_error) - 1)
    assert comparison.looks == ()
    assert "too few clicks for sequential results" in sentences(analysis)[-1]
    assert "1 units were seen in several arms" in sentences(analysis)[1]


def test_calibration_by_hand(by_hand):
    groups = analyse(by_hand, looks=2).calibration
    assert [(g.arm, g.domain) for g in groups] == [
        ("control", ALL),
        ("control", "home"),
        ("treatment", ALL),
        ("treatment", "home"),
    ]
    assert groups[0].ratio == pytest.approx(1.0)
    assert groups[2].ratio == pytest.approx(4 / 6)
    assert groups[2].ece == pytest.approx(0.25)
    # scores 2 and 2 of 4, clicks 2 and 4 of 6: influences 1/2 - 1/3 and 1/2 - 2/3
    step = np.exp(1.959963985 * np.sqrt(2 / 36 * 2))
    assert groups[2].ratio_high == pytest.approx(4 / 6 * step)
    assert ratio_interval(np.ones(2), np.zeros(2), alpha=0.05) == (None, None, None)
    assert ratio_interval(np.ones(1), np.ones(1), alpha=0.05) == (1.0, None, None)


def many(folder, *, lift, arms=("control", "treatment"), units=300, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for number, arm in enumerate(arms):
        ctr = 0.3 * (1 + lift * number)
        for unit in range(units):
            shows = int(rng.integers(1, 12))
            rows.append(
                (f"{arm}-{unit}", arm, int(rng.binomial(shows, rng.beta(ctr * 4, (1 - ctr) * 4))), shows)
            )
    return rows_of(folder, rows)


def test_looks_end_with_the_whole_experiment(tmp_path):
    analysis = analyse(many(tmp_path, lift=0.5), planned_lift=0.3, looks=8)
    (comparison,) = analysis.comparisons
    last = comparison.looks[-1]
    assert (last.difference, last.low, last.high) == pytest.approx(
        (comparison.difference, comparison.low, comparison.high)
    )
    mixture = mixture_variance(analysis.arms[0].ctr * 0.3, alpha=0.05, power=0.8)
    variance = ((comparison.high - comparison.difference) / 1.959963985) ** 2
    assert last.always_high - last.difference == pytest.approx(
        half_width(variance, mixture=mixture, alpha=0.05)
    )
    smallest = [look.always_p for look in comparison.looks]
    assert smallest == sorted(smallest, reverse=True)
    assert "different" in sentences(analysis)[-1]


def test_a_look_sees_earlier_rows_only(tmp_path):
    data = many(tmp_path, lift=0.2)
    looks = analyse(data, looks=5).comparisons[0].looks
    frame = pl.read_parquet(data / "rows.parquet").filter(pl.col("time_ms") <= looks[0].time_ms)
    means = dict(frame.group_by("arm").agg(pl.col("label").mean()).iter_rows())
    assert looks[0].difference == pytest.approx(means["treatment"] - means["control"])


def test_several_treatments_share_the_error_level(tmp_path):
    analysis = analyse(many(tmp_path, lift=0.1, arms=("control", "one", "two")), looks=3)
    assert [c.arm for c in analysis.comparisons] == ["one", "two"]
    single = analysis.comparisons[0]
    error = (single.high - single.low) / 2 / 2.241402728  # z of 1 - 0.025 / 2
    assert single.p_value == pytest.approx(2 * (1 - _normal(abs(single.difference) / error)), rel=1e-6)


def _normal(z):
    from statistics import NormalDist

    return NormalDist().cdf(z)


def test_a_wrong_ratio_is_said_first(tmp_path):
    data = many(tmp_path, lift=0.0)
    assert "as configured" in sentences(analyse(data))[0]
    shifted = analyse(data, shares={"control": 0.4, "treatment": 0.6})
    assert shifted.sample_ratio.mismatch
    assert "no lift below can be trusted" in sentences(shifted)[0]


def test_the_command_writes_a_report_and_json(tmp_path, capsys):
    data = many(tmp_path, lift=0.3)
    out = tmp_path / "out"
    line = [
        "ab",
        "analyse",
        "--data",
        str(data),
        "--out",
        str(out),
        "--share",
        "control=1",
        "--share",
        "treatment=1",
    ]
    assert guarded(lambda: app(line, standalone_mode=False)) == 0
    assert "lift" in capsys.readouterr().out
    document = json.loads((out / JSON_FILE).read_text())
    assert document["comparisons"][0]["arm"] == "treatment"
    page = (out / REPORT_FILE).read_text()
    assert "Sample ratio" in page
    assert "data:image/png" in page


def test_names_are_escaped_and_undefined_numbers_are_null(tmp_path):
    rows = [("a", "control", 1, 2), ("b", "control", 1, 2), ("c", "<b>", 0, 1), ("d", "<b>", 0, 1)]
    report = write_analysis(analyse(rows_of(tmp_path, rows), looks=1), tmp_path / "out")
    assert "<b>" not in report.read_text()
    document = json.loads((tmp_path / "out" / JSON_FILE).read_text())
    assert document["comparisons"][0]["lift"] is None
    assert document["arms"][1]["design_effect"] is None


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["power", "--ctr", "0.05", "--rows-per-unit", "21", "--rows-cv", "0"], "design effect 2.000"),
        (["power", "--ctr", "0.05", "--units", "16310", "--design-effect", "1"], "20 %"),
        (
            ["simulate", "--experiments", "20", "--units-per-arm", "30", "--looks", "2"],
            "always valid peeking",
        ),
    ],
)
def test_plans_on_the_command_line(command, said, capsys):
    assert guarded(lambda: app(["ab", *command], standalone_mode=False)) == 0
    assert said in capsys.readouterr().out


def test_wrong_command_lines_are_one_line(tmp_path, capsys):
    assert guarded(lambda: app(["ab", "power", "--ctr", "2"], standalone_mode=False)) == 1
    assert "ctr must lie between 0 and 1" in capsys.readouterr().err
    line = ["ab", "analyse", "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--share", "half"]
    assert guarded(lambda: app(line, standalone_mode=False)) == 2
    assert "is not ARM=SHARE" in capsys.readouterr().err


def test_rows_that_are_no_experiment_are_refused(by_hand, tmp_path):
    def refused(message, **options):
        with pytest.raises(AbDataError, match=message):
            analyse(by_hand, **options)

    refused(r"the rows hold experiments \['e'\]; 'other' is not among them", experiment="other")
    refused("control arm 'base' has no rows; the arms are", control="base")
    with pytest.raises(AbDataError, match="no parquet file there; `ctr-train data join` makes one"):
        read_experiment(tmp_path / "nothing", None, looks=1)
    rows_of(by_hand, [("a", "control", 1, 2), ("b", "treatment", 1, 2), ("c", "treatment", 1, 2)])
    refused("arm 'control' has 1 unit; an interval needs at least 2")
    rows_of(by_hand, [("a", "control", 0, 2), ("b", "control", 0, 2), ("c", "t", 1, 2), ("d", "t", 1, 2)])
    refused("control arm 'control' has no click in 4 rows")
    rows_of(by_hand, [("a", "control", 0, 2), ("b", "control", 0, 2)])
    refused(r"experiment 'e' has arms \['control'\]; at least two are needed")
    rows_of(by_hand, [("a", "control", 0, 2)], unit=pl.lit(None, pl.String))
    refused("2 rows of experiment 'e' have no unit, arm or label")
    pl.DataFrame({"arm": ["a"]}).write_parquet(by_hand / "rows.parquet")
    refused("columns .* are missing; an experiment needs")
