"""The text is read back by prometheus-client, and several processes tell what one would have told."""

import asyncio
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.exposition import Exposition
from service.telemetry.instruments import Instruments
from service.telemetry.metric_table import TABLE, Metric
from service.telemetry.metrics import Metrics
from service.telemetry.slots import Slots

ROWS = (
    Metric("counter", "ctr_things_total", "Things\nof a \\ kind.", ("name",)),
    Metric("histogram", "ctr_took_seconds", "Time.", ("stage",), (0.1, 1.0)),
    Metric("gauge", "ctr_now", "Now."),
    Metric("gauge", "ctr_most", "Most.", (), across_workers="max"),
    Metric("gauge", "ctr_worked_out", "Half of all.", ("name",), derived="raw"),
)


def half(parts):
    total = sum(part[0] for part in parts)
    return total / 2 if total else None


def processes(count):
    """Instruments of some processes, and the exposition of all."""
    exposition = Exposition(ROWS, {"ctr_worked_out": half})
    made = [Instruments(ROWS, Slots()) for _ in range(count)]
    for one in made:
        exposition.add(one.slots)
    return made, exposition


def samples(text):
    families = text_string_to_metric_families(text.decode())
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def test_what_is_written_is_read_back_by_the_official_parser():
    (one,), exposition = processes(1)
    name = 'a "b"\\\n'
    one.counter("ctr_things_total", name).inc(2.5)
    took = one.histogram("ctr_took_seconds", "x")
    for seconds in (0.05, 0.1, 0.5, 3.0):
        took.observe(seconds)
    one.gauge("ctr_now").set(math.inf)
    text = exposition.render()
    found = samples(text)
    assert found["ctr_things_total", ("name", name)] == 2.5
    assert [
        found["ctr_took_seconds_bucket", ("le", le), ("stage", "x")] for le in ("0.1", "1.0", "+Inf")
    ] == [2, 3, 4]
    assert found["ctr_took_seconds_count", ("stage", "x")] == 4
    assert found["ctr_took_seconds_sum", ("stage", "x")] == pytest.approx(3.65)
    assert found["ctr_now",] == math.inf
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert families["ctr_things"].documentation == "Things\nof a \\ kind."
    assert {name: family.type for name, family in families.items()} == {
        "ctr_things": "counter",
        "ctr_took_seconds": "histogram",
        "ctr_now": "gauge",
        "ctr_most": "gauge",
        "ctr_worked_out": "gauge",
    }


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "NaN"), (-math.inf, "-Inf"), (1e-9, "1e-09")])
def test_odd_values_are_written_as_prometheus_reads_them(value, shown):
    (one,), exposition = processes(1)
    one.gauge("ctr_now").set(value)
    assert f"\nctr_now {shown}\n" in exposition.render().decode()


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.integers(0, 30)), max_size=30))
def test_several_processes_tell_what_one_would_have_told(events):
    several, together = processes(3)
    (single,), alone = processes(1)
    for process, name, value in events:
        for made in (several[process], single):
            made.counter("ctr_things_total", name).inc(value)
            made.histogram("ctr_took_seconds", name).observe(value / 16)  # exact in binary
            made.gauge("ctr_now").inc(value)
            made.slots.claim("raw", (name,), 1)[0] += value
    assert samples(together.render()) == samples(alone.render())


def test_of_gauges_with_a_maximum_the_largest_counts():
    several, exposition = processes(3)
    for made, value in zip(several, (1.0, 5.0, 2.0), strict=True):
        made.gauge("ctr_most").set(value)
    assert samples(exposition.render())["ctr_most",] == 5.0


def test_a_wrong_name_kind_or_number_of_labels_is_refused():
    (one,), _ = processes(1)
    with pytest.raises(ValueError, match="the table declares no counter 'ctr_now' to be written"):
        one.counter("ctr_now")
    with pytest.raises(ValueError, match="the table declares no gauge 'ctr_thing' to be written"):
        one.gauge("ctr_thing")
    with pytest.raises(ValueError, match="the table declares no gauge 'ctr_worked_out' to be written"):
        one.gauge("ctr_worked_out", "a")
    with pytest.raises(ValueError, match="the table declares no histogram 'ctr_now' to be written"):
        one.histogram("ctr_now")
    with pytest.raises(ValueError, match=r"ctr_took_seconds has labels \('stage',\), not the values \(\)"):
        one.histogram("ctr_took_seconds")


def test_a_large_scrape_never_holds_the_loop_for_two_milliseconds(tmp_path):
    """Two workers, 100 domains, 8 arms, the first scrape of all: CPU time between turns of the loop."""
    workers = [Metrics(file=tmp_path / f"worker-{number}") for number in range(2)]
    means = {f"domain-{number}": 0.1 for number in range(100)}
    for metrics in workers:
        for arm in range(8):
            mine = metrics.for_bundle(
                model="m", version=f"v{arm % 4}", alias="a", mean_scores=means, arm=f"e/{arm}"
            )
            mine.scored(domain="domain-1", score_sum=1.0, num_items=9, user_reads=[1] * 5, item_reads=[1] * 5)

    async def longest_turn():
        scrape = asyncio.ensure_future(workers[0].render_in_turns())
        longest, turns, last = 0.0, 0, time.thread_time()
        while not scrape.done():
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, turns, last = max(longest, now - last), turns + 1, now
        return longest, turns, scrape.result()

    longest, turns, text = asyncio.run(longest_turn())
    assert text == workers[0].render()
    assert longest < 0.002, f"{longest * 1000:.2f} ms in one of {turns} turns"
    assert turns > 3
    assert len(text.splitlines()) > 1000


def test_scrapes_at_the_same_time_tell_the_same():
    async def both():
        metrics = Metrics()
        return await asyncio.gather(*(metrics.render_in_turns() for _ in range(3)))

    assert len(set(asyncio.run(both()))) == 1


def test_every_row_of_the_table_is_shown():
    text = Metrics().render().decode()
    for row in TABLE:
        assert f"# TYPE {row.name} {row.kind}\n" in text
