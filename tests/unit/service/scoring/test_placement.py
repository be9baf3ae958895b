"""Which provider a graph gets: what is named is had or refused, `auto` takes the best, reasons are told."""

import pytest

from service.contract.manifest import GpuPlan, GpuProvider, Graph
from service.errors import GraphError, RuntimeMissingError
from service.scoring import session as sessions
from service.scoring.placement import CPU, CUDA, TENSORRT, Placement, candidates
from service.scoring.predictor import Predictor
from service.scoring.session import open_session
from tests.support.quotient_graph import FLOATS, write

PLAN = GpuPlan(
    providers=(
        GpuProvider(name=TENSORRT, options={"trt_fp16_enable": "0"}),
        GpuProvider(name=CUDA, options={"use_tf32": "0"}),
    ),
    rows=(8, 32),
    requests=(1, 4),
    captures=True,
)
EVERYTHING = (TENSORRT, CUDA, CPU)


def providers(device, plan, available):
    tried, reasons = candidates(device, plan, available)
    return [candidate.provider for candidate in tried], reasons


def test_auto_takes_what_the_runtime_has_in_the_order_of_the_plan():
    assert providers("auto", PLAN, EVERYTHING) == ([TENSORRT, CUDA, CPU], {})
    built_without = "this onnxruntime was built without it"
    assert providers("auto", PLAN, (CUDA, CPU)) == ([CUDA, CPU], {TENSORRT: built_without})
    assert providers("auto", PLAN, (CPU,)) == ([CPU], {TENSORRT: built_without, CUDA: built_without})


def test_auto_leaves_a_graph_without_a_plan_to_the_processor():
    unplanned = "the manifest plans no GPU for this graph"
    assert providers("auto", None, EVERYTHING) == ([CPU], {TENSORRT: unplanned, CUDA: unplanned})


@pytest.mark.parametrize(("device", "name"), [("cpu", CPU), ("cuda", CUDA), ("tensorrt", TENSORRT)])
def test_a_device_that_is_named_is_the_only_one(device, name):
    for plan in (PLAN, None):
        assert providers(device, plan, EVERYTHING)[0] == [name]
    _, reasons = candidates(device, PLAN, EVERYTHING)
    assert reasons == {other: f"device is set to {device}" for other in EVERYTHING if other != name}


@pytest.mark.parametrize(("device", "extra"), [("cuda", "gpu"), ("tensorrt", "gpu"), ("cpu", "cpu")])
def test_a_named_device_that_the_runtime_lacks_is_refused(device, extra):
    with pytest.raises(RuntimeMissingError, match=f"for device '{device}' install the extra `{extra}`"):
        candidates(device, PLAN, ())


def test_options_come_from_the_plan_and_recording_is_switched_on_for_the_first_provider_only():
    (tensorrt,), _ = candidates("tensorrt", PLAN, EVERYTHING)
    assert tensorrt.options == {
        TENSORRT: {"trt_fp16_enable": "0", "trt_cuda_graph_enable": "1"},
        CUDA: {"use_tf32": "0"},
    }
    (cuda,), _ = candidates("cuda", PLAN, EVERYTHING)
    assert (cuda.options, cuda.captures) == ({CUDA: {"use_tf32": "0", "enable_cuda_graph": "1"}}, True)
    plain = cuda.without_captures()
    assert (plain.options, plain.captures, plain.plan) == ({CUDA: {"use_tf32": "0"}}, False, PLAN)
    assert PLAN.options_of(CUDA) == {"use_tf32": "0"}


def test_products_of_a_graph_without_a_plan_are_not_rounded_either():
    (cuda,), _ = candidates("cuda", None, EVERYTHING)
    assert (cuda.options, cuda.captures, cuda.plan) == ({CUDA: {"use_tf32": "0"}}, False, None)


class FakeRuntime:
    """A runtime that has every provider by name, and opens graphs on some of them only.

    Args:
        real: What opens graphs in the end.
        working: Providers whose libraries are there.
        capturable: Whether it takes a graph for recording.
    """

    def __init__(self, real, working, *, capturable):
        self._real, self._working, self._capturable = real, working, capturable
        self.asked = []

    def __getattr__(self, name):
        return getattr(self._real, name)

    def InferenceSession(self, path, options, *, providers, enable_fallback):
        self.asked.append(providers)
        assert enable_fallback == 0
        told = providers[0][1]
        if not self._capturable and "1" in (told.get("enable_cuda_graph"), told.get("trt_cuda_graph_enable")):
            raise RuntimeError("not all nodes are on the GPU")
        session = self._real.InferenceSession(path, options, providers=[CPU])
        names = [name for name, _ in providers if name in self._working]
        return FakeSession(session, {name: told for name, told in providers if name in names})


class FakeSession:
    """A session of the processor that says it runs elsewhere."""

    def __init__(self, real, told):
        self._real, self._told = real, told

    def __getattr__(self, name):
        return getattr(self._real, name)

    def get_providers(self):
        return [*self._told, CPU]

    def get_provider_options(self):
        return {**self._told, CPU: {}}


@pytest.fixture
def runtime(monkeypatch):
    """Installs a runtime for opening sessions."""

    def install(*working, capturable=True):
        fake = FakeRuntime(sessions.onnxruntime, working, capturable=capturable)
        monkeypatch.setattr(sessions, "onnxruntime", fake)
        return fake

    return install


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "g.onnx")


def test_auto_goes_on_where_libraries_are_missing_and_says_so(path, runtime):
    runtime(CUDA)
    _, placed = open_session(path, "auto", PLAN, available=EVERYTHING)
    assert placed.provider == CUDA
    assert placed.options == {"use_tf32": "0", "enable_cuda_graph": "1"}
    assert (placed.rows, placed.requests, placed.captures) == ((8, 32), (1, 4), True)
    assert placed.on_gpu
    assert "fell back to ['CUDAExecutionProvider', 'CPUExecutionProvider']" in placed.not_taken[TENSORRT]
    assert placed.not_taken[CPU] == "CUDAExecutionProvider comes first"


def test_auto_ends_on_the_processor_with_every_reason(path, runtime):
    runtime()
    _, placed = open_session(path, "auto", PLAN, available=EVERYTHING)
    assert (placed.provider, placed.on_gpu, placed.rows) == (CPU, False, ())
    assert set(placed.not_taken) == {TENSORRT, CUDA}
    assert "fell back to ['CPUExecutionProvider']" in placed.not_taken[CUDA]


def test_a_graph_that_cannot_be_recorded_runs_unrecorded_and_says_why(path, runtime):
    runtime(CUDA, capturable=False)
    _, placed = open_session(path, "cuda", PLAN, available=EVERYTHING)
    assert (placed.provider, placed.captures, placed.rows) == (CUDA, False, (8, 32))
    assert placed.options == {"use_tf32": "0"}
    assert "not all nodes are on the GPU" in placed.not_taken["captures"]


def test_a_named_device_whose_libraries_are_missing_is_refused(path, runtime):
    runtime()
    with pytest.raises(GraphError, match=r"fell back to .* instead of CUDAExecutionProvider"):
        open_session(path, "cuda", PLAN, available=EVERYTHING)


def test_what_is_shown_names_the_provider_its_options_and_the_reasons():
    placed = Placement(CUDA, {"use_tf32": "0"}, (8,), (1,), captures=True, not_taken={TENSORRT: "missing"})
    assert placed.shown() == {
        "provider": CUDA,
        "options": {"use_tf32": "0"},
        "padded_rows": [8],
        "padded_requests": [1],
        "cuda_graphs": True,
        "not_taken": {TENSORRT: "missing"},
    }


def test_a_predictor_tells_its_placement_and_warms_up_the_sizes_it_runs(path):
    graph = Graph(file="g.onnx", inputs=(FLOATS,), output="y", gpu=PLAN)
    predictor = Predictor(path, graph)
    assert predictor.placement.provider == CPU
    assert predictor.warm_up_rows == (1, 10, 100)
    assert predictor.placement.not_taken == dict.fromkeys((TENSORRT, CUDA), "device is set to cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": (32, 8)}, r"rows \[32, 8\] must rise from each to the next"),
        ({"requests": (1, 1)}, r"requests \[1, 1\] must rise"),
        ({"rows": ()}, "at least 1 item"),
        ({"providers": ()}, "at least 1 item"),
        (
            {"providers": (PLAN.providers[0], PLAN.providers[0])},
            "'TensorrtExecutionProvider' is planned twice",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GpuPlan.model_validate(PLAN.model_dump() | changes)
