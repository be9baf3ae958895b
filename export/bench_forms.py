"""How fast the forms of chosen experts are, side by side in ONNX Runtime on one thread.

`python -m export.bench_forms` prints milliseconds a run by form and rows, for the routed experts alone with
their gate (random weights and inputs), and exits 1 where a form is slower than promised. Times are of the
calling thread, forms take turns, figures are medians. Invariant: every exact form gives the scores of the one
that computes all experts, within 1e-5, before it is timed.

    batched   every expert on every row by one product for all, as in training, unchosen ones times 0
    dense     the same, as the compiler writes it: one product for each expert
    grouped   each expert on the rows that chose it
    fused     one operator of the runtime
    allowed   grouped over the experts that one domain may choose
    static    one set of experts with constant weights
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from export.fused_experts import FusedExperts
from export.lower import replace_layers
from export.passes import optimise
from export.timing import rows_per_second
from service.scoring.runtime import onnxruntime
from training.models.base import Sides
from training.models.cesaa_form import ClearGate, FixedGate
from training.models.layers import StackedExperts, TwoSidedLinear
from training.models.routed_experts import DenseExperts, GroupedExperts, StaticExperts
from training.models.slicing import keep_experts, keep_rows

NUM_EXPERTS, TOP_K = 8, 2
REQUEST_WIDTH, ROW_WIDTH = 32, 224
EXPERT_WIDTHS = (256, 256)
ALLOWED = (1, 4, 6)
NUM_ROWS = (1, 8, 32, 128, 512)
PROMISED = {"grouped": 3.5, "static": 4.0}
"""Times faster than every expert on every row, batched, at 512 rows."""
EXACT = ("batched", "grouped", "fused")
MAX_ERROR = 1e-5
ROUNDS, ROUND_S = 15, 0.05


class RoutedBlock(nn.Module):
    """Gate and routed experts.

    Args:
        gate: Gives each row's experts and weights.
        routed: Computes them.
    """

    def __init__(self, gate: nn.Module, routed: nn.Module) -> None:
        super().__init__()
        self.gate, self.routed = gate, routed

    def forward(self, request: Tensor, row: Tensor, request_index: Tensor) -> Tensor:
        """(N, H) float32 from both sides (R, P) and (N, Q)."""
        sides = Sides(request, row, request_index, request_index)
        routing = self.gate(sides)
        mixed: Tensor = self.routed(sides, routing.experts, routing.weights)
        return mixed


def blocks(seed: int = 0) -> dict[str, RoutedBlock]:
    """The forms of one random model, by name."""
    torch.manual_seed(seed)
    stack = StackedExperts(
        REQUEST_WIDTH,
        ROW_WIDTH,
        EXPERT_WIDTHS,
        num_experts=NUM_EXPERTS,
        dropout=0.0,
        batch_norm=False,
        linear_output=True,
    )
    clean = TwoSidedLinear(REQUEST_WIDTH, ROW_WIDTH, NUM_EXPERTS, bias=False)

    def gate(linear: TwoSidedLinear) -> ClearGate:
        return ClearGate(linear, top_k=TOP_K, domain_width=0, by_domain=False, allowed=None)

    made: dict[str, tuple[nn.Module, nn.Module]] = {
        "batched": (gate(clean), DenseExperts(copy.deepcopy(stack))),
        "dense": (gate(clean), DenseExperts(stack)),
        "grouped": (gate(clean), GroupedExperts(stack)),
        "fused": (gate(clean), FusedExperts(stack)),
        "allowed": (gate(keep_rows(clean, ALLOWED)), GroupedExperts(keep_experts(stack, ALLOWED))),
        "static": (FixedGate((1, 4), (0.6, 0.4)), StaticExperts(stack, (1, 4), (0.6, 0.4))),
    }
    return {name: RoutedBlock(*parts).eval() for name, parts in made.items()}


def session_of(block: RoutedBlock, *, lowered: bool = True) -> Any:
    """The block as a session on one thread, exported as graphs of bundles are; layers may stay as trained."""
    if lowered:
        replace_layers(block)
    rows, requests = torch.export.Dim("N", min=0), torch.export.Dim("R", min=1)
    example = (torch.zeros(2, REQUEST_WIDTH), torch.zeros(5, ROW_WIDTH), torch.zeros(5, dtype=torch.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            block,
            args=example,
            input_names=["request", "row", "request_index"],
            output_names=["mixed"],
            dynamic_shapes=({0: requests}, {0: rows}, {0: rows}),
            opset_version=20,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto: onnx.ModelProto = program.model_proto
    optimise(proto)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def drawn(num_rows: int, *, seed: int = 1) -> dict[str, NDArray[Any]]:
    """One request with random candidates."""
    random = np.random.default_rng(seed)
    return {
        "request": random.standard_normal((1, REQUEST_WIDTH)).astype(np.float32),
        "row": random.standard_normal((num_rows, ROW_WIDTH)).astype(np.float32),
        "request_index": np.zeros(num_rows, np.int64),
    }


def measure(
    sessions: Mapping[str, Any], num_rows: int, *, rounds: int = ROUNDS, round_s: float = ROUND_S
) -> dict[str, float]:
    """Milliseconds a run of each form."""

    def run_of(session: Any) -> Callable[[Any], object]:
        return lambda inputs: session.run(None, inputs)

    runs = {name: run_of(session) for name, session in sessions.items()}
    rates = rows_per_second(runs, [drawn(num_rows)], rounds=rounds, round_s=round_s)
    return {name: 1e3 * num_rows / rate for name, rate in rates.items()}


def largest_error(sessions: Mapping[str, Any]) -> float:
    """Of the exact forms against dense, over a few batch sizes."""
    worst = 0.0
    for num_rows in (0, 1, 2, 5, 33, 512):
        inputs = drawn(num_rows, seed=num_rows)
        (expected,) = sessions["dense"].run(None, inputs)
        for name in EXACT:
            (found,) = sessions[name].run(None, inputs)
            worst = max(worst, float(np.abs(found - expected).max(initial=0.0)))
    return worst


def broken_promises(times: Mapping[str, float]) -> list[str]:
    """Forms that are slower than promised, one sentence each.

    Args:
        times: Milliseconds a run at the largest number of rows.
    """
    return [
        f"{name} is {times['batched'] / times[name]:.2f} times as fast as batched; {least} is promised"
        for name, least in PROMISED.items()
        if times["batched"] / times[name] < least
    ]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each form.")] = ROUNDS,
) -> None:
    """Time the forms; exit 1 where one is slower than promised."""
    sessions = {name: session_of(block, lowered=name != "batched") for name, block in blocks().items()}
    error = largest_error(sessions)
    if error > MAX_ERROR:
        typer.echo(f"forms differ by {error:.1e}; at most {MAX_ERROR:.0e} is allowed", err=True)
        raise typer.Exit(1)
    typer.echo(f"{NUM_EXPERTS} experts, {TOP_K} a row, {REQUEST_WIDTH + ROW_WIDTH} inputs, {EXPERT_WIDTHS}")
    typer.echo(f"{'rows':>5s}" + "".join(f"{name:>18s}" for name in sessions) + "   ms a run (times batched)")
    times: dict[str, float] = {}
    for num_rows in NUM_ROWS:
        times = measure(sessions, num_rows, rounds=rounds)
        cells = (f"{ms:9.3f} ({times['batched'] / ms:5.2f})" for ms in times.values())
        typer.echo(f"{num_rows:5d}" + "".join(f"{cell:>18s}" for cell in cells))
    typer.echo(f"largest difference of exact forms {error:.1e}")
    broken = broken_promises(times)
    for sentence in broken:
        typer.echo(sentence, err=True)
    if broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
