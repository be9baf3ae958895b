"""Objectives: what is measured of a run, what is kept, and what the command says and exits with."""

import json
from pathlib import Path

import pytest
import yaml

from loadtests.record import Call, Run, RunError, read_run
from loadtests.report import main as report
from loadtests.report import page, write_report
from loadtests.slo import SLO_FILE, Objectives, SloError, judge, main, percentile, read_objectives
from service.routing.config import RoutingConfig
from tests.support.routing import experiment, write_routing

OBJECTIVES = Objectives.model_validate(
    {
        "version": 1,
        "window_days": 30,
        "availability": {"min_ratio": 0.99},
        "latency_ms": {"all": {"p50": 10, "p99": 50}, "heavy": {"p50": 20, "p99": 100}},
        "shed": {"max_ratio": 0.01},
        "degraded": {"max_ratio": 0.02},
        "parity": {"max_abs_difference": 1e-5},
        "arms": {"min_p_value": 0.001},
    }
)


def score(number, latency_ms=5.0, **changes):
    known = {"kind": "score", "profile": "browse", "num_items": 50, "status": 200, "domain": "home"}
    start = number / 100
    times = {"intended_s": start, "sent_s": start, "done_s": start + latency_ms / 1000}
    return Call(**known | times | {"user": f"u{number}"} | changes)


def run(calls, **changes):
    known = {"loop": "open", "title": "made by hand", "seconds": 2.0, "begun_at": "2026-03-01T00:00:00+00:00"}
    return Run(**known | {"plan": {"rate": "100"}, "calls": calls} | changes)


def verdicts(made, routing=None):
    return {verdict.objective: verdict for verdict in judge(made, OBJECTIVES, routing)}


def test_a_good_run_keeps_everything():
    found = verdicts(run([score(n) for n in range(200)], parity={"num_rows": 9, "max_abs_difference": 2e-7}))
    assert {name for name, verdict in found.items() if verdict.kept is None} == {
        "latency_ms.heavy.p50",
        "latency_ms.heavy.p99",
    }
    assert not [verdict for verdict in found.values() if verdict.kept is False]
    assert found["availability"].value == 1
    assert found["latency_ms.all.p99"].value == pytest.approx(5)
    assert found["parity"].value == 2e-7


def test_failures_silence_and_feedback_count_against_availability_and_refusals_do_not():
    calls = [score(n) for n in range(94)]
    calls += [score(94, status=500), score(95, status=0, done_s=None), score(96, status=429)]
    calls += [score(97, status=422), score(98, status=504), score(99, kind="feedback", status=503)]
    found = verdicts(run(calls))
    assert found["availability"].value == pytest.approx(0.96)
    assert found["availability"].kept is False
    assert str(found["availability"]) == "availability: 0.96, at least 0.99"
    assert found["shed"].value == pytest.approx(1 / 99)  # of requests to /score
    assert found["shed"].kept is False


def test_latencies_are_of_good_replies_by_profile_and_from_the_intended_start():
    calls = [score(n) for n in range(98)]
    calls += [score(98, 60, sent_s=1.03), score(99, 80, sent_s=1.06)]  # they waited to be sent
    calls += [score(n, 15, profile="heavy") for n in range(100, 102)]
    calls += [score(102, 900, status=500)]
    found = verdicts(run(calls))
    assert found["latency_ms.all.p50"].value == pytest.approx(5)
    assert found["latency_ms.all.p99"].value == pytest.approx(60)  # the 101st of 102
    assert found["latency_ms.all.p99"].kept is False
    assert found["latency_ms.heavy.p50"].value == pytest.approx(15)


def test_a_percentile_of_fewer_replies_than_it_needs_is_not_judged():
    found = verdicts(run([score(n, profile="heavy") for n in range(99)]))
    assert found["latency_ms.heavy.p99"].kept is None
    assert found["latency_ms.heavy.p99"].note == "99 replies: too few to judge"
    assert found["latency_ms.heavy.p50"].kept is True
    assert verdicts(run([score(n, profile="heavy") for n in range(100)]))["latency_ms.heavy.p99"].kept is True


@pytest.mark.parametrize(("percent", "expected"), [(50, 2.0), (75, 3.0), (99, 4.0), (100, 4.0), (0, 1.0)])
def test_percentiles_are_values_that_occurred(percent, expected):
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == expected


def test_degraded_replies_and_scores_that_differ_are_not_kept():
    calls = [score(n, degraded=n < 5) for n in range(100)]
    found = verdicts(run(calls, parity={"num_rows": 10, "max_abs_difference": 0.01}))
    assert str(found["degraded"]) == "degraded: 0.05, at most 0.02"
    assert str(found["parity"]) == "parity: 0.01, at most 1e-05 (10 rows compared)"
    assert verdicts(run(calls))["parity"].kept is None


def test_arms_are_held_to_the_routing_file():
    routing = RoutingConfig.model_validate({"version": 1, "experiments": [experiment()]})
    calls = [score(n, experiment="ab", arm="control" if n % 10 else "treatment") for n in range(100)]
    found = verdicts(run(calls), routing)
    assert found["arms.ab"].kept is False
    assert "units control 90, treatment 10" in found["arms.ab"].note
    halves = [score(n, experiment="ab", arm="control" if n % 2 else "treatment") for n in range(100)]
    assert verdicts(run(halves), routing)["arms.ab"].kept is True
    switched = [*halves, score(200, user="u1", experiment="ab", arm="treatment")]
    found = verdicts(run(switched), routing)["arms.ab"]
    assert (found.kept, found.note) == (False, "experiment 'ab' put 1 units into more than one arm")
    assert verdicts(run(halves[:5]), routing)["arms.ab"].note.endswith("too few to judge")


def objectives_file(folder, **changes):
    path = folder / "slo.yaml"
    path.write_text(yaml.safe_dump(OBJECTIVES.model_dump() | changes))
    return path


def test_the_command_names_what_is_not_kept_and_exits_with_1(tmp_path, capsys):
    run([score(n, status=500 if n < 5 else 200) for n in range(100)]).write(tmp_path / "bad")
    run([score(n) for n in range(100)]).write(tmp_path / "good")
    arguments = ["--slo", str(objectives_file(tmp_path)), "--json", str(tmp_path / "verdicts.json")]
    assert main([str(tmp_path / "good"), *arguments]) == 0
    assert "not kept:" not in capsys.readouterr().out
    assert main([str(tmp_path / "good"), str(tmp_path / "bad"), *arguments]) == 1
    assert "not kept: bad: availability: 0.95, at least 0.99\n" in capsys.readouterr().out
    document = json.loads((tmp_path / "verdicts.json").read_text())
    (entry,) = [v for v in document[str(tmp_path / "bad")] if v["objective"] == "availability"]
    assert (entry["kept"], entry["limit"]) == (False, 0.99)


def test_a_run_comes_back_as_it_was_written(tmp_path):
    made = run([score(1, experiment="ab", arm="control"), score(2, status=0, sent_s=None, done_s=None)])
    routing = write_routing(tmp_path / "r.yaml", experiment())
    made.write(tmp_path / "run", routing)
    assert read_run(tmp_path / "run") == made
    assert (tmp_path / "run" / "routing.yaml").read_bytes() == routing.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"nothing holds no load run: FileNotFoundError"),
        ("[", r"nothing holds no load run: JSONDecodeError"),
        ('{"loop": "open"}', r"nothing holds no load run: KeyError: 'fields'"),
    ],
)
def test_a_folder_without_a_run_is_told(tmp_path, content, message, capsys):
    folder = tmp_path / "nothing"
    folder.mkdir()
    if content is not None:
        (folder / "run.json").write_text(content)
    with pytest.raises(RunError, match=message):
        read_run(folder)
    assert main([str(folder)]) == 2
    assert "holds no load run" in capsys.readouterr().err


def test_a_run_without_requests_is_no_success(tmp_path, capsys):
    run([]).write(tmp_path / "empty")
    assert main([str(tmp_path / "empty")]) == 2
    assert "empty holds a load run without any request" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shed": {"max_ratio": 2}}, "slo.yaml: shed.max_ratio: Input should be less than or equal to 1"),
        ({"speed": 1}, "slo.yaml: speed: Extra inputs are not permitted"),
    ],
)
def test_objectives_with_a_mistake_are_refused(tmp_path, changes, message):
    with pytest.raises(SloError, match=message):
        read_objectives(objectives_file(tmp_path, **changes))
    with pytest.raises(SloError, match="No such file"):
        read_objectives(tmp_path / "none.yaml")


def test_the_objectives_of_the_project_are_read():
    assert read_objectives(SLO_FILE).availability.min_ratio == 0.999
    assert "all" in read_objectives(SLO_FILE).latency_ms


def test_the_report_is_one_page_that_says_what_was_measured(tmp_path):
    calls = [score(n, domain=("home", "sport")[n % 2], arm="control", experiment="a<b") for n in range(150)]
    calls += [score(n, status=500) for n in range(150, 160)]
    run(calls).write(tmp_path)
    found = write_report(tmp_path, tmp_path / "report.html", objectives_file(tmp_path))
    text = (tmp_path / "report.html").read_text()
    assert text.count('src="data:image/png;base64,') == 2
    assert "http" not in text.replace("<!doctype html>", "").replace("</html>", "")
    assert (
        '<td>availability</td><td>0.9375</td><td>at least 0.99</td><td class="broken">not kept</td>' in text
    )
    assert "<td>home</td><td>85</td>" in text  # 75 of the first, and the 10 that failed
    assert "<td>a&lt;b/control</td>" in text
    assert "160 requests to /score (200: 150, 500: 10), 0 to /feedback" in text
    assert [verdict.objective for verdict in found if verdict.kept is False] == ["availability"]


def test_a_report_of_no_good_reply_or_none_at_all_is_made_too():
    made = run([score(n, status=0, sent_s=None, done_s=None) for n in range(10)])
    assert "no reply: 10" in page(made, judge(made, OBJECTIVES, None))


def test_the_report_command_says_where_it_is_or_why_not(tmp_path, capsys, monkeypatch):
    run([score(n) for n in range(10)]).write(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    assert report() == 0
    assert Path(capsys.readouterr().out.strip()) == tmp_path / "report.html"
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "none")])
    assert report() == 2
    assert "none holds no load run" in capsys.readouterr().err
