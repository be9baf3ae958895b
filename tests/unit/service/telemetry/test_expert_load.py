"""Expert load: rows counted per domain and expert, whatever requests share a run."""

from __future__ import annotations

import threading

import numpy as np

from service.telemetry.metrics import Metrics


def load_of(metrics: Metrics, num_experts: int = 3):
    metrics.for_bundle(model="m", version="v", alias="stable", mean_scores={"a": None, "b": None})
    return metrics.expert_load(version="v", domains=("a", "b"), num_experts=num_experts)


def shown(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Rows by domain and expert, those of 0 left out."""
    found = {}
    for line in metrics.render().decode().splitlines():
        if line.startswith("ctr_expert_rows_total{"):
            labels, value = line.rsplit(" ", 1)
            parts = dict(item.split("=") for item in labels[labels.index("{") + 1 : -1].split(","))
            found[parts["domain"].strip('"'), parts["expert"].strip('"')] = float(value)
    return {key: value for key, value in found.items() if value}


def test_one_request_counts_each_choice_of_each_row():
    metrics = Metrics()
    load = load_of(metrics)
    load(np.array([[0, 2], [2, 1], [2, 0]]), np.array([1]), np.zeros(3, np.int64))
    load(np.array([[1, 2]]), np.array([1]), np.zeros(1, np.int64))

    assert shown(metrics) == {("b", "0"): 2, ("b", "1"): 2, ("b", "2"): 4}


def test_requests_of_several_domains_in_one_run():
    """Each row counts for the domain of its own request; unknown domains share `other`."""
    metrics = Metrics()
    load_of(metrics)(
        np.array([[0], [0], [1], [2], [2]]), np.array([1, 0, 2]), np.array([0, 0, 1, 2, 2], np.int64)
    )

    assert shown(metrics) == {("b", "0"): 2, ("a", "1"): 1, ("other", "2"): 2}


def test_no_rows_count_nothing():
    metrics = Metrics()
    load_of(metrics)(np.zeros((0, 2), np.int64), np.array([0]), np.zeros(0, np.int64))

    assert shown(metrics) == {}


def test_runs_of_several_threads_all_count():
    """Graphs run in a pool of threads."""
    metrics = Metrics()
    load = load_of(metrics, num_experts=1)

    def many() -> None:
        for _ in range(500):
            load(np.zeros((2, 1), np.int64), np.array([0]), np.zeros(2, np.int64))

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert shown(metrics) == {("a", "0"): 4000}
