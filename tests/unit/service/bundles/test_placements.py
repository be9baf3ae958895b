"""A loaded bundle says where its graphs run, once for each way."""

from structlog.testing import capture_logs

from service.bundles.registry import LoadedBundle
from service.contract.store import ModelStore


def test_graphs_that_run_alike_are_told_together(small):
    with capture_logs() as records:
        loaded = LoadedBundle.load(ModelStore(small.store), "stable", device="auto")
    (told,) = [record for record in records if record["event"] == "graphs_placed"]
    assert (told["bundle"], told["device"]) == (loaded.bundle_id, "auto")
    assert told["graphs"] == ["whole", "cluster-1"]
    assert told["provider"] == "CPUExecutionProvider"
    assert told["not_taken"]["CUDAExecutionProvider"] == "the manifest plans no GPU for this graph"


def test_a_device_that_was_named_is_told(small):
    with capture_logs() as records:
        LoadedBundle.load(ModelStore(small.store), "stable", device="cpu")
    (told,) = [record for record in records if record["event"] == "graphs_placed"]
    assert (told["device"], told["not_taken"]) == ("cpu", {})
