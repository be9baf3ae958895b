"""Graphs of one domain and of some: the whole graph's scores from fewer nodes, multiply-adds and inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest
import torch

from export.card import graph_work
from export.errors import RunError
from export.graph import CalibratorTable, ScoringGraph
from export.macs import count_macs
from export.onnx_export import Form, export_graph
from export.parity import check_parity
from export.run_folder import Part, RunFolder
from export.weights import WeightFiles
from service.contract.manifest import Graph
from service.scoring.runtime import onnxruntime
from tests.support.models import row_sampler, trained_model
from tests.support.schemas import full_schema
from training.data.prepared import PreparedDataset
from training.engine.calibrate import GLOBAL_ONLY, Calibrator
from training.models.aread import Aread
from training.models.base import CtrModel
from training.models.mask import random_mask

SCHEMA = full_schema()
DENSITIES = (0.05, 0.3, 0.7)
AT_ROWS = ("item_ints", "item_floats", "request_index")


@dataclass(frozen=True)
class Made:
    """Graphs of one model in one folder."""

    model: CtrModel
    whole: ScoringGraph
    graphs: dict[str, Graph]
    folder: Path

    def score(self, key: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Scores (N,) of one graph in ONNX Runtime."""
        entry = self.graphs[key]
        session = onnxruntime.InferenceSession(
            str(self.folder / entry.file), providers=["CPUExecutionProvider"]
        )
        fed = {spec.name: inputs[spec.name] for spec in entry.inputs}
        scores: np.ndarray = session.run([entry.output], fed)[0]
        return scores

    def proto(self, key: str) -> onnx.ModelProto:
        """The file of one graph, weights left outside."""
        return onnx.load(str(self.folder / self.graphs[key].file), load_external_data=False)


def calibrators() -> CalibratorTable:
    size = SCHEMA.num_domains + 1
    return CalibratorTable(
        np.linspace(0.7, 1.3, size, dtype=np.float32), np.linspace(-0.5, 0.5, size, dtype=np.float32)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """AREAD with masks: the whole graph, one of domain 0, one of domains 0 and 1; dead experts poisoned."""
    model = trained_model("aread", SCHEMA)
    ranker = model.ranker
    assert isinstance(ranker, Aread)
    rng = np.random.default_rng(4)
    ranker.set_masks({d: random_mask(ranker.shape, q, rng) for d, q in enumerate(DENSITIES)})
    whole = ScoringGraph(model, SCHEMA, calibrators())
    folder = tmp_path_factory.mktemp("graphs")
    weights = WeightFiles(folder / "graphs")
    graphs = {"whole": export_graph(whole, SCHEMA, folder, weights=weights)}
    # What no mask of domains 0 and 1 reads is poisoned after the whole graph was written.
    used = np.logical_or.reduce([ranker.masks[0].used[-1], ranker.masks[1].used[-1]])
    assert not used.all()
    with torch.no_grad():
        ranker.expert_pyramid.levels[-1].first.bias[torch.from_numpy(~used)] = 1e6
    for key, domains in {"domain-0": (0,), "some": (0, 1)}.items():
        graph = ScoringGraph(model, SCHEMA, calibrators(), domains=domains)
        form = "domain" if len(domains) == 1 else "cluster"
        graphs[key] = export_graph(graph, SCHEMA, folder, name=key, form=form, weights=weights)
    return Made(model, whole, graphs, folder)


def test_both_forms_score_as_the_whole_graph(made: Made):
    """|dp| <= 1e-5 in every domain they serve, at every batch size, and against the whole ONNX graph."""
    for key, domains in {"domain-0": (0,), "some": (0, 1)}.items():
        report = check_parity(
            made.whole, lambda inputs, key=key: made.score(key, inputs), row_sampler(SCHEMA), domains=domains
        )
        assert report.max_error <= 1e-5
        inputs = row_sampler(SCHEMA, seed=5).draw(domain=domains[-1], num_rows=40, num_requests=3)
        np.testing.assert_allclose(made.score(key, inputs), made.score("whole", inputs), atol=1e-5)


def test_mixed_permuted_and_single_rows_score_alike(made: Made):
    """Two domains in one call; any order of rows; each row alone; the single-domain graph on its own rows."""
    inputs = row_sampler(SCHEMA, seed=7).draw(domain=0, num_rows=24, num_requests=4)
    inputs["domain"] = np.array([0, 1, 0, 1])
    together = made.score("some", inputs)
    np.testing.assert_allclose(together, made.score("whole", inputs), atol=1e-5)

    order = np.random.default_rng(0).permutation(24)
    permuted = made.score("some", {k: v[order] if k in AT_ROWS else v for k, v in inputs.items()})
    np.testing.assert_allclose(permuted, together[order], atol=1e-6)
    for row in range(0, 24, 5):
        request = inputs["request_index"][row]
        one = {k: v[row : row + 1] if k in AT_ROWS else v[request : request + 1] for k, v in inputs.items()}
        one["request_index"] = np.zeros(1, np.int64)
        np.testing.assert_allclose(made.score("some", one)[0], together[row], atol=1e-6)
        if inputs["domain"][request] == 0:
            np.testing.assert_allclose(made.score("domain-0", one)[0], together[row], atol=1e-5)


def test_a_domain_that_was_not_asked_for_gets_no_score(made: Made):
    """nan, which the service refuses; never another domain's probability."""
    inputs = row_sampler(SCHEMA).draw(domain=2, num_rows=5)
    assert np.isnan(made.score("some", inputs)).all()


def test_a_graph_of_one_domain_is_smaller_in_every_respect(made: Made):
    """Fewer nodes and multiply-adds, no mixing, bias or domain table, gates only of experts in use."""
    whole, own = (made.graphs[key].options for key in ("whole", "domain-0"))
    assert own["num_nodes"] < whole["num_nodes"]
    assert own["macs_per_row"] < whole["macs_per_row"]
    assert own["macs_per_request"] < whole["macs_per_request"]
    sizes = {
        key: {t.name: int(np.prod(t.dims)) for t in made.proto(key).graph.initializer}
        for key in ("whole", "domain-0")
    }
    gone = ("mixer", "inputs.domain", "domain_bias")
    assert not [name for name in sizes["domain-0"] if any(part in name for part in gone)]
    assert [name for name in sizes["whole"] if "mixer" in name]
    gates = [name for name in sizes["whole"] if "gates" in name and "weight" in name]
    assert gates
    assert all(sizes["domain-0"][name] < sizes["whole"][name] for name in gates)


def test_tables_are_stored_once(made: Made):
    """The specialised graphs read embedding tables from the whole graph's file."""
    for key in ("domain-0", "some"):
        assert "graphs/whole.bin" in made.graphs[key].external_files
    own = made.folder / "graphs" / "domain-0.bin"
    assert not own.exists() or own.stat().st_size < (made.folder / "graphs" / "whole.bin").stat().st_size / 2


def test_multiply_adds_are_counted_by_hand():
    """Two request-level columns into 3 outputs, then rows (N, 3) into 4: 6 a request, 12 a row."""
    make = onnx.helper.make_tensor_value_info
    weights = {"a": (2, 3), "b": (4, 3)}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["user", "a"], ["left"]),
            onnx.helper.make_node("Gather", ["left", "index"], ["rows"]),
            onnx.helper.make_node("Gemm", ["rows", "b"], ["out"], transB=1),
        ],
        "two products",
        [make("user", 1, ["R", 2]), make("index", 7, ["N"])],
        [make("out", 1, ["N", 4])],
        [onnx.numpy_helper.from_array(np.zeros(size, np.float32), name) for name, size in weights.items()],
        value_info=[make("left", 1, ["R", 3]), make("rows", 1, ["N", 3])],
    )
    assert count_macs(onnx.helper.make_model(graph)) == (12, 6)


def part(name: str, *, form: Form = "whole", domains: tuple[int, ...] = (0, 1, 2, 3)) -> Part:
    """A part of a run; its calibrators leave logits as they are."""
    model = trained_model(name, SCHEMA)
    if isinstance(model.ranker, Aread):
        rng = np.random.default_rng(4)
        model.ranker.set_masks({d: random_mask(model.ranker.shape, q, rng) for d, q in enumerate(DENSITIES)})
    flat = np.ones(SCHEMA.num_domains + 1), np.zeros(SCHEMA.num_domains + 1)
    lines = Calibrator(SCHEMA.domains, scale=flat[0], bias=flat[1], strength=GLOBAL_ONLY)
    return Part(key=form, form=form, model=model, calibrator=lines, domains=domains)


def run_of(*parts: Part) -> RunFolder:
    """A run that nothing is read from but its parts and its rows by domain."""
    rows = {"valid": {"home": 5, "search": 9}, "train": {"home": 1, "search": 1, "cart": 7}}
    prepared = cast(PreparedDataset, SimpleNamespace(domain_rows=rows))
    return RunFolder(Path("run"), parts, SCHEMA, prepared, {"model": "a method"}, "")


def test_domains_with_graphs_of_their_own_leave_the_others_to_the_first():
    """Every domain is still served once; a cluster that has none left has no graph."""
    home, search, cart = SCHEMA.domains
    run = run_of(part("mmoe")).with_domain_graphs([cart, home])
    assert [(p.key, p.form, p.domains) for p in run.parts] == [
        ("whole", "whole", (1, 3)),
        ("domain-2", "domain", (2,)),
        ("domain-0", "domain", (0,)),
    ]
    clusters = run_of(part("mmoe", form="cluster", domains=(1,)), part("mmoe", domains=(0, 2, 3)))
    assert [p.domains for p in clusters.with_domain_graphs([search]).parts] == [(0, 2, 3), (1,)]


def test_the_largest_domains_are_those_with_most_validation_rows():
    """Train rows decide where none is left; more than there are is all."""
    run = run_of(part("mmoe"))
    assert run.largest_domains(0) == ()
    assert run.largest_domains(2) == ("search", "home")
    assert run.largest_domains(9) == ("search", "home", "cart")


@pytest.mark.parametrize(
    ("model", "domains", "words"),
    [
        ("mmoe", ["home", "home"], "a graph for domain 'home' is wanted twice"),
        ("mmoe", ["toys"], "a graph for domain 'toys' is wanted; the data have home, search, cart"),
        (
            "deepfm",
            ["home"],
            "not specialised: a model of type a method has nothing to drop for domain",
        ),
    ],
)
def test_a_graph_that_cannot_be_is_refused(model: str, domains: list[str], words: str):
    with pytest.raises(RunError, match=words):
        run_of(part(model)).with_domain_graphs(domains)


def test_experts_are_counted_by_level():
    """The whole graph holds all; one of a domain what its mask uses; methods without masks count none."""
    own = part("aread", form="domain", domains=(0,))
    assert isinstance(own.model.ranker, Aread)
    used = own.model.ranker.masks[0].num_used
    assert own.experts_held(specialised=False) == {"0": [3, 3], "1": [6, 6], "2": [12, 12]}
    assert own.experts_held(specialised=True) == {
        str(level): [count, full] for level, (count, full) in enumerate(zip(used, (3, 6, 12), strict=True))
    }
    assert part("mmoe").experts_held(specialised=False) == {}


def test_the_card_shows_work_and_experts():
    graph = Graph(
        file="graphs/a.onnx",
        inputs=(),
        output="score",
        options={"num_nodes": 90, "macs_per_row": 12345, "macs_per_request": 6, "experts": {"0": [2, 3]}},
    )
    assert graph_work(graph) == ("90", "12,345", "6", "0: 2/3")
    assert graph_work(graph.model_copy(update={"options": {}})) == ("", "", "", "")
