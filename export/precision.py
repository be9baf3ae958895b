"""Which precision a graph gets: variants made, judged on validation rows, and timed on this machine.

    fp32   as trained
    int8   large products in static int8, see `quantise.py`
    fp16   tables in float16, see `half.py`: memory rather than speed

Writes candidates into a scratch folder only. Invariant: what is chosen passed the gate; where nothing did,
the graph stays fp32 and its evidence says why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import JsonValue

from export.admission import Verdict, judge
from export.errors import ExportError
from export.half import halve_tables
from export.onnx_export import Form, write_graph
from export.quantise import Range, measured_values, merge_ranges, quantise
from export.rows import GraphArrays
from export.timing import rows_per_second
from export.validation import CALIBRATION_ROWS, LabelledRows
from export.weights import WeightFiles
from service.contract.manifest import Graph
from service.contract.schema import FeatureSchema
from service.scoring.predictor import Predictor
from service.scoring.runtime import onnxruntime

Precision = Literal["fp32", "int8", "fp16"]
PrecisionChoice = Literal["fp32", "int8", "fp16", "auto"]
TIMED_ROWS = 100
MIN_GAIN = 1.05
"""How much faster than fp32 a precision must be for `auto` to take it."""


class PrecisionError(ExportError):
    """A precision that was asked for by name cannot be had."""


@dataclass(frozen=True)
class Chosen:
    """A graph in the precision that it will be served in.

    Attributes:
        proto: Weights inside.
        precision: Of it.
        evidence: Rows a second and verdicts by precision, for the manifest; empty where fp32 was asked for.
        reference, scores: (B,) float32 of fp32 and of the chosen one on the part's validation rows.
    """

    proto: onnx.ModelProto
    precision: Precision
    evidence: dict[str, JsonValue] = field(default_factory=dict)
    reference: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class PrecisionJudge:
    """Chooses for one graph after the other.

    Attributes:
        schema: Of the data.
        wanted: By name, or `auto`.
        scratch: Empty folder for candidates.
    """

    schema: FeatureSchema
    wanted: PrecisionChoice
    scratch: Path

    def choose(
        self, proto: onnx.ModelProto, key: str, rows: LabelledRows, timed: Sequence[GraphArrays]
    ) -> Chosen:
        """The variant of a graph to serve.

        Args:
            proto: Fp32, weights inside.
            key: Of the graph.
            rows: Validation rows of the domains it serves.
            timed: Inputs to time it on.
        """
        if self.wanted == "fp32":
            return Chosen(proto, "fp32")
        variants = self._variants(proto, rows)
        if not variants:
            return Chosen(proto, "fp32", {"reason": "nothing is large enough for a lower precision"})
        runs = {"fp32": self._opened(proto, key, "fp32").run} | {
            name: self._opened(variant, key, name).run for name, variant in variants.items()
        }
        rates = rows_per_second(runs, timed)
        scores = {name: rows.scores(run) for name, run in runs.items()}
        verdicts = {name: self._verdict(rows, scores["fp32"], scores[name]) for name in variants}
        best = self._best(rates, verdicts)
        evidence: dict[str, JsonValue] = {
            "rows_per_s": {name: round(rate) for name, rate in rates.items()},
            "timed_rows": TIMED_ROWS,
            "verdicts": {name: verdict.told() for name, verdict in verdicts.items()},
            "reason": self._reason(best, rates, verdicts),
        }
        return Chosen(
            variants.get(best, proto), best, evidence, reference=scores["fp32"], scores=scores[best]
        )

    def _variants(self, proto: onnx.ModelProto, rows: LabelledRows) -> dict[Precision, onnx.ModelProto]:
        variants: dict[Precision, onnx.ModelProto] = {}
        if self.wanted in ("int8", "auto") and len(rows):
            names = measured_values(proto)
            if names:
                variants["int8"] = quantise(proto, value_ranges(proto, names, rows))
        if self.wanted == "fp16":
            halved = halve_tables(proto)
            if halved is not None:
                variants["fp16"] = halved
        return variants

    def _verdict(
        self, rows: LabelledRows, reference: NDArray[np.float32], scores: NDArray[np.float32]
    ) -> Verdict:
        """Limits over all rows count where all graphs are looked at together."""
        return judge(
            labels=rows.labels,
            domains=rows.domains,
            names=self.schema.domains,
            reference=reference,
            scores=scores,
            overall=False,
        )

    def _best(self, rates: dict[str, float], verdicts: dict[Precision, Verdict]) -> Precision:
        admitted = [name for name, verdict in verdicts.items() if verdict.admitted]
        if self.wanted != "auto":
            return admitted[0] if admitted else "fp32"
        faster = [name for name in admitted if rates[name] >= MIN_GAIN * rates["fp32"]]
        return max(faster, key=lambda name: rates[name], default="fp32")

    @staticmethod
    def _reason(best: Precision, rates: dict[str, float], verdicts: dict[Precision, Verdict]) -> str:
        if best != "fp32":
            return f"{best} is admitted and runs at {rates[best] / rates['fp32']:.2f} times the rate of fp32"
        refused = [f"{name}: {verdict.reason}" for name, verdict in verdicts.items() if not verdict.admitted]
        slow = [
            f"{name}: {rates[name] / rates['fp32']:.2f} times the rate of fp32"
            for name, verdict in verdicts.items()
            if verdict.admitted
        ]
        return "; ".join([*refused, *slow])

    def _opened(self, proto: onnx.ModelProto, key: str, precision: Precision) -> _Session:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        folder = self.scratch / f"{key}-{precision}"
        form: Form = "whole"
        entry = write_graph(
            copy,
            self.schema,
            folder,
            name=key,
            form=form,
            weights=WeightFiles(folder / "graphs"),
            precision=precision,
        )
        return _Session(folder, entry)


class _Session:
    """A candidate, run as the service runs it.

    Args:
        folder: Where it was written.
        entry: What the manifest would say of it.
    """

    def __init__(self, folder: Path, entry: Graph) -> None:
        self._path, self._entry = folder / entry.file, entry
        self._names = [spec.name for spec in entry.inputs]
        self._predictor = Predictor(self._path, entry)

    def run(self, inputs: GraphArrays) -> NDArray[np.float32]:
        """Scores (N,) float32 of all inputs of a scoring graph."""
        return self._predictor.run({name: inputs[name] for name in self._names})


def value_ranges(proto: onnx.ModelProto, names: Sequence[str], rows: LabelledRows) -> dict[str, Range]:
    """Ranges of inner values of a graph over a sample of rows.

    Args:
        proto: Weights inside.
        names: Of the values.
        rows: Of domains that the graph serves; at least one.
    """
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    known = {value.name: value for value in own.graph.value_info}
    own.graph.output.extend(known[name] for name in names)
    sample = rows.take(np.arange(min(CALIBRATION_ROWS, len(rows))))
    with tempfile.TemporaryDirectory() as folder:
        WeightFiles(Path(folder)).move_out(own, "ranges.bin")
        path = Path(folder) / "ranges.onnx"
        path.write_bytes(own.SerializeToString())
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        fed = [entry.name for entry in session.get_inputs()]
        parts = []
        for inputs in sample.batches():
            values = session.run(list(names), {name: inputs[name] for name in fed})
            parts.append({n: Range(v.min(axis=0), v.max(axis=0)) for n, v in zip(names, values, strict=True)})
    return merge_ranges(parts)
