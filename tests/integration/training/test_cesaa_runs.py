"""CESAA from a run to the service: routing measured, masks in the manifest, one domain switched to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.package import BuildOptions, build_bundle
from export.run_folder import RunFolder
from service.contract.bundle import Bundle
from service.contract.store import ModelStore
from tests.support.asgi import with_app
from tests.support.routing import body, experiment, reply_of, told, write_routing
from tests.support.runs import run_into
from training.config import load_config
from training.engine.artefacts import load_model
from training.engine.fit import RunResult
from training.report import write_report
from training.routing.errors import RoutingError
from training.routing.fine_tune import fine_tune
from training.routing.routing_run import RoutingRun
from training.routing.warmup import cesaa_of

INPUTS = "inputs: {tables: [{dim: 4}], domain_dim: 4}"
CESAA = (
    "model={type: cesaa, num_experts: 4, expert_widths: [12, 8], tower_widths: [6], mi_warmup_steps: 5, "
    f"mi_weight: 0.5, gate_input: domain, {INPUTS}}}"
)
AREAD = (
    "model={type: aread, gate_dim: 4, num_experts: [2, 4], expert_widths: [[8], [4]], "
    f"base: {{type: mmoe, num_experts: 2, expert_widths: [8], gate_input: domain}}, {INPUTS}}}"
)


@pytest.fixture(scope="module")
def cesaa(small, prepared, tmp_path_factory) -> RunResult:
    config = load_config(small.config, [CESAA, "training.epochs=1"])
    return run_into(config, prepared, tmp_path_factory.mktemp("cesaa") / "run")


@pytest.fixture(scope="module")
def store(small, prepared, cesaa, tmp_path_factory) -> tuple[Path, dict[str, Bundle]]:
    """A store with AREAD as `stable` and CESAA, masked, as `canary`."""
    folder = tmp_path_factory.mktemp("switch")
    aread = run_into(load_config(small.config, [AREAD, "training.epochs=1"]), prepared, folder / "aread")
    options = {
        "stable": (aread, BuildOptions(alias="stable")),
        "canary": (cesaa, BuildOptions(alias="canary", expert_masks=True)),
    }
    made = {
        alias: build_bundle(
            RunFolder.open(run.folder.root), ModelStore(folder / "store"), how, progress=lambda _: None
        )
        for alias, (run, how) in options.items()
    }
    return folder / "store", made


def test_a_run_measures_how_rows_choose(cesaa, prepared):
    """With a gate by domain all rows of a domain agree, so every domain could have a static graph."""
    routing = cesaa.metrics["routing"]

    assert routing["rows"] == cesaa.metrics["valid"]["rows"]
    assert sum(routing["load"]) == pytest.approx(1, abs=1e-5)
    assert set(routing["domains"]) == set(prepared.schema.domains)
    seen = [own for own in routing["domains"].values() if own["rows"]]
    assert all(own["agreement"] == 1.0 for own in seen)
    assert all(own["static_auc_change"] in (None, pytest.approx(0, abs=1e-3)) for own in seen)
    assert all(len(own["allowed"]) == 2 for own in seen)
    assert routing["allowed"]["changed_ratio"] == 0
    assert 0 <= routing["information"] <= min(routing["domain_entropy"], 1.3863)
    assert "Load of experts" in write_report(cesaa.folder.root).read_text()


def test_masks_and_their_cost_are_in_the_manifest(store):
    _, bundles = store
    manifest = bundles["canary"].manifest
    (graph,) = manifest.graphs.values()

    assert graph.experts is not None
    assert (graph.experts.output, graph.experts.num_experts) == ("experts", 4)
    told_of: Any = graph.options["expert_masks"]
    assert told_of["changed_ratio"] == 0
    assert told_of["auc_change"]["total_auc"] == pytest.approx(0, abs=1e-6)
    assert graph.options["experts_form"] == {
        "form": "grouped",
        "skips_experts": True,
        "reason": "as asked for",
    }
    kept = [entry.experts_kept for entry in manifest.domains.values()]
    assert all(names is not None and names[0].startswith("routed.") for names in kept)
    (aread,) = bundles["stable"].manifest.graphs.values()
    assert aread.experts is None


def test_routing_alone_switches_a_domain_from_aread_to_cesaa(store, tmp_path):
    """One line of the routing file: the domain is scored by the other method, the others are not."""
    folder, bundles = store
    first, second, *_ = bundles["stable"].schema.domains
    everyone = [{"name": "cesaa", "share": 1.0, "bundle": "canary"}]
    routing = write_routing(tmp_path / "routing.yaml", experiment(domains=[first], arms=everyone))

    async def use(app: Any) -> Any:
        replies = [await reply_of(app, body("u1", domain)) for domain in (first, second)]
        return replies, app.serving.metrics.render().decode()

    (switched, other), text = with_app(folder, use, routing_file=routing)
    (before, _), _ = with_app(folder, use)

    assert told(switched) == ("ab", "cesaa", "canary")
    assert switched["model"]["bundle"] == bundles["canary"].bundle_id
    assert told(other) == (None, None, "stable")
    assert told(before) == (None, None, "stable")
    assert len(switched["scores"]) == len(before["scores"]) == 2
    assert switched["scores"] != before["scores"]
    version = bundles["canary"].bundle_id[:12]

    def counted(domain: str) -> float:
        labels = ("ctr_expert_rows_total{", version, f'domain="{domain}"')
        lines = [line for line in text.splitlines() if all(label in line for label in labels)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    assert counted(first) == 4  # two candidates, two experts each
    assert counted(second) == 0


def test_other_models_have_no_routing_to_train(small, prepared):
    with pytest.raises(RoutingError, match="a model of type mmoe has no routing; cesaa has"):
        RoutingRun(load_config(small.config), prepared)


def test_a_run_trains_on_with_its_masks_on(cesaa, prepared, tmp_path):
    """The new run starts from the old weights, and no row leaves its domain's experts."""
    old = cesaa.metrics["routing"]["domains"]
    result = fine_tune(cesaa.folder.root, tmp_path / "tuned")
    model = load_model(result.folder.model, prepared.schema)
    allowed = cesaa_of(model).gate.allowed_experts

    assert [list(own) for own in allowed[:-1]] == [old[name]["allowed"] for name in prepared.schema.domains]
    assert result.metrics["routing"]["allowed"]["changed_ratio"] == 0
    assert result.metrics["test"]["total_auc"] > cesaa.metrics["test"]["total_auc"] - 0.02


def test_runs_without_routing_cannot_be_tuned_on(finished, tmp_path):
    with pytest.raises(RoutingError, match="its metrics have no routing; only runs of type cesaa have"):
        fine_tune(finished.folder.root, tmp_path / "tuned")
