"""Which precision a graph gets: what the gate admits and is faster; named ones are had or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

import export.package
import export.precision
import export.quantise
from export.admission import Verdict
from export.graph import CalibratorTable, ScoringGraph
from export.onnx_export import trace_graph
from export.package import BuildOptions
from export.precision import Chosen, PrecisionChoice, PrecisionError, PrecisionJudge
from export.validation import LabelledRows
from tests.support.models import row_sampler, trained_model
from tests.support.schemas import full_schema

SCHEMA = full_schema()
ADMITTED = Verdict(admitted=True, reason="every limit is kept", num_rows=512)
REFUSED = Verdict(admitted=False, reason="overall AUC is 0.5 worse, at most 0.0002 is allowed")


@pytest.fixture(scope="module")
def traced() -> tuple[onnx.ModelProto, LabelledRows]:
    """A graph and rows of a domain that it serves."""
    size = SCHEMA.num_domains + 1
    lines = CalibratorTable(np.ones(size, np.float32), np.zeros(size, np.float32))
    proto = trace_graph(ScoringGraph(trained_model("mmoe", SCHEMA), SCHEMA, lines), SCHEMA)
    inputs = row_sampler(SCHEMA, seed=5).draw(domain=1, num_rows=512, num_requests=512)
    inputs["request_index"] = np.arange(512, dtype=np.int64)
    return proto, LabelledRows(inputs, np.tile(np.float32([0, 1]), 256), inputs["domain"])


@pytest.fixture
def choose(traced, tmp_path, monkeypatch):
    """Chooses for the graph where the gate and the clock say what they are told to."""
    proto, rows = traced
    monkeypatch.setattr(export.quantise, "MIN_ENTRIES", 40)

    def made(wanted: PrecisionChoice, verdict: Verdict, gain: float) -> Chosen:
        asked = []

        def judged(**told: Any) -> Verdict:
            asked.append(told)
            return verdict

        monkeypatch.setattr(export.precision, "judge", judged)
        monkeypatch.setattr(
            export.precision, "rows_per_second", lambda runs, _: {"fp32": 100.0, "int8": 100.0 * gain}
        )
        chosen = PrecisionJudge(SCHEMA, wanted, tmp_path).choose(proto, "whole", rows, [])
        (told,) = asked
        assert told["scores"].shape == told["reference"].shape == (512,)
        assert np.abs(told["scores"] - told["reference"]).max() > 0
        return chosen

    return made


def kinds(chosen: Chosen) -> set[str]:
    return {node.op_type for node in chosen.proto.graph.node}


def test_auto_takes_what_is_admitted_and_faster(choose):
    chosen = choose("auto", ADMITTED, 1.8)
    assert chosen.precision == "int8"
    assert "QGemm" in kinds(chosen)
    assert chosen.evidence["reason"] == "int8 is admitted and runs at 1.80 times the rate of fp32"
    assert chosen.evidence["rows_per_s"] == {"fp32": 100, "int8": 180}
    assert chosen.evidence["verdicts"]["int8"]["admitted"] is True
    assert np.abs(chosen.scores - chosen.reference).max() > 0


def test_auto_stays_with_fp32_where_nothing_is_gained(choose):
    chosen = choose("auto", ADMITTED, 1.04)
    assert chosen.precision == "fp32"
    assert "QGemm" not in kinds(chosen)
    assert chosen.evidence["reason"] == "int8: 1.04 times the rate of fp32"
    np.testing.assert_array_equal(chosen.scores, chosen.reference)


def test_auto_stays_with_fp32_where_the_gate_refuses(choose):
    chosen = choose("auto", REFUSED, 3.0)
    assert chosen.precision == "fp32"
    assert chosen.evidence["reason"] == f"int8: {REFUSED.reason}"


def test_a_precision_asked_for_by_name_need_not_be_faster(choose):
    assert choose("int8", ADMITTED, 0.5).precision == "int8"
    assert choose("int8", REFUSED, 3.0).precision == "fp32"


def build(precision: PrecisionChoice, *compared: Chosen) -> export.package._Build:
    """A build that has compared these."""
    made = export.package._Build(
        cast("Any", None), BuildOptions(precision=precision), Path(), lambda _: None, {}
    )
    rows = LabelledRows({}, np.zeros(0, np.float32), np.zeros(0, np.int64))
    made.compared.extend((rows, chosen) for chosen in compared)
    return made


def of(precision: Any, reason: str = "") -> Chosen:
    return Chosen(onnx.ModelProto(), precision, {"reason": reason})


def test_a_named_precision_that_no_graph_got_is_refused_with_every_reason_once():
    made = build("int8", of("fp32", "too few clicks"), of("fp32", "AUC fell"), of("fp32", "too few clicks"))
    with pytest.raises(PrecisionError, match=r"^no graph is served in int8: too few clicks; AUC fell$"):
        made._require_wanted(None)


def test_a_named_precision_that_fails_over_all_rows_is_refused():
    with pytest.raises(PrecisionError, match=f"^precision int8 is not admitted: {REFUSED.reason}$"):
        build("int8", of("int8"))._require_wanted(REFUSED)


def test_what_is_admitted_and_what_was_left_to_the_exporter_is_not_refused():
    build("int8", of("int8"), of("fp32", "nothing to gain"))._require_wanted(ADMITTED)
    build("auto", of("fp32"))._require_wanted(REFUSED)
    build("fp32")._require_wanted(None)
