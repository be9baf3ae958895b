"""Builds a routing table from the file and the loaded bundles, and refuses what could not be served.

Invariant: building touches nothing that serves; a table is whole or an error says why there is none.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.bundles.registry import LoadedBundle
from service.errors import RoutingError
from service.routing.assign import HOLDOUT, Assigner
from service.routing.config import ExperimentConfig, MaturityConfig, RoutingConfig
from service.routing.shadow import Shadow
from service.routing.table import Choice, DomainRoute, RoutingTable, RunningExperiment
from service.routing.target import Blend, Target
from service.scoring.runner import Runner
from service.scoring.scorer import Scorer
from service.telemetry.metrics import NO_ARM, BundleMetrics, Metrics

MAX_SHOWN = 5

UNLISTED = None
"""Stands for every domain that has no entry of its own."""


class TableBuilder:
    """Builds one table.

    Args:
        config: The file.
        default: Scorer of the default bundle.
        bundles: Every reference of the file, loaded.
        runner: Where graphs of arms run.
        shadow_runner: Where graphs of shadows run.
        metrics: Of this process.
        max_items: Most candidates in one request.
    """

    def __init__(
        self,
        config: RoutingConfig,
        *,
        default: Scorer,
        bundles: Mapping[str, LoadedBundle],
        runner: Runner,
        shadow_runner: Runner,
        metrics: Metrics,
        max_items: int,
    ) -> None:
        self._config = config
        self._default = default
        self._bundles = bundles
        self._shadow_runner = shadow_runner
        self._metrics = metrics
        self._max_items = max_items
        alias = default.loaded.alias
        self._scorers = {
            # An arm on the default's own alias is the default, even while that alias moves.
            name: default if name == alias else Scorer(loaded, runner, max_items=max_items)
            for name, loaded in bundles.items()
        }
        self._bundle_metrics: dict[tuple[str, str], BundleMetrics] = {}

    def build(self, digest: str) -> RoutingTable:
        """The table.

        Raises:
            RoutingError: A bundle does not score a domain that it would have to.
        """
        running = {e.name: self._running(e) for e in self._config.experiments}
        domains = {
            name: self._route(name, experiment, running) for name, experiment in self._experiment_of().items()
        }
        unlisted = self._route(UNLISTED, None, running)
        shadows = [r.shadow for r in running.values() if r.shadow is not None]
        return RoutingTable(self._config, digest, domains, unlisted, shadows)

    def _experiment_of(self) -> dict[str, ExperimentConfig | None]:
        """Every domain with an entry of its own, and its experiment."""
        experiments = self._config.experiments
        everywhere = next((e for e in experiments if e.domains == "all"), None)
        found: dict[str, ExperimentConfig | None] = dict.fromkeys(self._default.loaded.routes, everywhere)
        maturity = self._config.maturity
        if maturity is not None:
            for name in self._bundles[maturity.zero_shot].routes:
                found.setdefault(name, None)
        for experiment in experiments:
            if experiment.domains != "all":
                found.update(dict.fromkeys(experiment.domains, experiment))
        return found

    def _running(self, experiment: ExperimentConfig) -> RunningExperiment:
        holdout, shadow = experiment.holdout, experiment.shadow
        assigner = Assigner(
            experiment=experiment.name,
            salt=experiment.salt,
            arms=[arm.name for arm in experiment.arms],
            spans=experiment.spans,
            control=experiment.control_arm,
            holdout_share=0.0 if holdout is None else holdout.share,
            holdout_salt=(holdout and holdout.salt) or f"{experiment.salt}/{HOLDOUT}",
            overrides=experiment.overrides,
            killed=experiment.kill_switch or self._config.kill_switch,
        )
        if shadow is None:
            return RunningExperiment(assigner, experiment.unit, None)
        scorer = Scorer(self._bundles[shadow.bundle], self._shadow_runner, max_items=self._max_items)
        beside = Shadow(
            scorer,
            share=shadow.share,
            budget_ms=shadow.budget_ms,
            max_waiting=shadow.max_waiting,
            metrics=self._metrics.routing,
        )
        return RunningExperiment(assigner, experiment.unit, beside)

    def _route(
        self,
        domain: str | None,
        experiment: ExperimentConfig | None,
        running: Mapping[str, RunningExperiment],
    ) -> DomainRoute:
        scorer, blend = self._by_maturity(domain)
        plain = Choice(self._target(scorer, NO_ARM, blend), None, None)
        if experiment is None or domain is None:
            return DomainRoute(plain, None, {})
        self._must_score(scorer, domain, f"experiment '{experiment.name}': the default")
        arms = {HOLDOUT: self._target(scorer, f"{experiment.name}/{HOLDOUT}", blend)}
        for arm in experiment.arms:
            label = f"{experiment.name}/{arm.name}"
            if arm.bundle is None:
                arms[arm.name] = self._target(scorer, label, blend)
            else:
                own = self._scorers[arm.bundle]
                self._must_score(own, domain, f"experiment '{experiment.name}': arm '{arm.name}'")
                arms[arm.name] = self._target(own, label, None)
        if experiment.shadow is not None:
            shadow = self._scorers[experiment.shadow.bundle]
            self._must_score(shadow, domain, f"experiment '{experiment.name}': the shadow")
        return DomainRoute(plain, running[experiment.name], arms)

    def _by_maturity(self, domain: str | None) -> tuple[Scorer, Blend | None]:
        """Who answers a domain that no experiment has a say in."""
        maturity = self._config.maturity
        if maturity is None:
            return self._default, None
        entry = None if domain is None else self._default.loaded.bundle.manifest.domains.get(domain)
        num_rows = 0 if entry is None else entry.num_train_rows
        if num_rows >= maturity.mature_rows:
            return self._default, None
        if num_rows == 0:
            return self._without_rows(domain, maturity, listed=entry is not None), None
        few_shot = self._scorers[maturity.few_shot or maturity.zero_shot]
        self._must_score(few_shot, domain or "", f"maturity: {num_rows} rows ask for a blend, but few_shot")
        return self._default, Blend(few_shot, maturity.prior_rows / (maturity.prior_rows + num_rows))

    def _without_rows(self, domain: str | None, maturity: MaturityConfig, *, listed: bool) -> Scorer:
        zero_shot = self._scorers[maturity.zero_shot]
        if listed:
            self._must_score(zero_shot, domain or "", "maturity: it has no rows, but zero_shot")
        loaded = zero_shot.loaded
        return zero_shot if domain in loaded.routes or loaded.unknown is not None else self._default

    def _must_score(self, scorer: Scorer, domain: str, who: str) -> None:
        """Refuse a bundle that would answer 404.

        Raises:
            RoutingError: It does not list the domain and rejects such.
        """
        loaded = scorer.loaded
        if domain not in loaded.routes and loaded.unknown is None:
            some = ", ".join(sorted(loaded.routes)[:MAX_SHOWN])
            raise RoutingError(
                f"domain '{domain}': {who}, bundle '{loaded.alias}' ({loaded.version}), does not score it; "
                f"its {len(loaded.routes)} domains are {some}{', ...' * (len(loaded.routes) > MAX_SHOWN)}"
            )

    def _target(self, scorer: Scorer, label: str, blend: Blend | None) -> Target:
        key = (scorer.loaded.alias, label)
        metrics = self._bundle_metrics.get(key)
        if metrics is None:
            metrics = self._bundle_metrics[key] = bundle_metrics(self._metrics, scorer.loaded, label)
        return Target(scorer, metrics, label, blend)


def bundle_metrics(metrics: Metrics, loaded: LoadedBundle, arm: str = NO_ARM) -> BundleMetrics:
    """Metrics of a bundle in one arm; its largest domains come first."""
    manifest = loaded.bundle.manifest
    by_weight = sorted(manifest.domains, key=lambda name: -manifest.domains[name].num_train_rows)
    made = metrics.for_bundle(
        model=manifest.name,
        version=loaded.version,
        alias=loaded.alias,
        mean_scores={name: manifest.domains[name].mean_score for name in by_weight},
        arm=arm,
    )
    for predictor in loaded.predictors.values():
        if predictor.graph.experts is not None:
            predictor.tell_experts(
                metrics.expert_load(
                    version=loaded.version,
                    domains=loaded.bundle.schema.domains,
                    num_experts=predictor.graph.experts.num_experts,
                )
            )
    return made


__all__ = ["TableBuilder", "bundle_metrics"]
