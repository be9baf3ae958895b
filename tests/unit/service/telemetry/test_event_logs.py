"""Exposure and feedback logs over sinks that are slow, full, or break."""

import asyncio
import errno
import threading
import time

import msgspec
import pytest
from structlog.testing import capture_logs

from service.errors import FeedbackUnavailable, Overloaded
from service.telemetry import exposure
from service.telemetry.exposure import ExposureLog, FeedbackLog
from service.telemetry.metrics import Metrics


class Record(msgspec.Struct):
    n: int


class MemorySink:
    """Keeps batches; `broken` makes it fail, `gate` makes it wait."""

    def __init__(self):
        self.batches, self.closed, self.broken, self.gate = [], False, False, threading.Event()
        self.gate.set()

    def append(self, lines):
        self.gate.wait(5)
        if self.broken and lines:
            raise OSError(errno.ENOSPC, "No space left on device")
        if lines:
            self.batches.append(list(lines))

    def close(self):
        self.closed = True

    @property
    def lines(self):
        return [line for batch in self.batches for line in batch]


def counted(metrics, line):
    return f"{line}\n" in metrics.render().decode()


def exposures(sink, metrics, **options):
    settings = {"sample_ratio": 1.0, "max_queue": 100, "flush_s": 0.01, **options}
    return ExposureLog(sink, metrics.events, **settings)


def test_exposures_are_written_within_the_interval_and_on_close():
    async def use():
        sink, metrics = MemorySink(), Metrics()
        kept = exposures(sink, metrics)
        kept.start()
        kept.offer(Record(1))
        await asyncio.sleep(0.1)
        early = list(sink.lines)
        kept.offer(Record(2))
        await kept.close()
        return early, sink, metrics

    early, sink, metrics = asyncio.run(use())
    assert early == [b'{"n":1}\n']
    assert (sink.lines, sink.closed) == ([b'{"n":1}\n', b'{"n":2}\n'], True)
    assert counted(metrics, 'ctr_exposures_total{outcome="written"} 2.0')


def test_a_full_queue_drops_and_counts_and_half_a_queue_is_not_waited_for():
    async def use():
        sink, metrics = MemorySink(), Metrics()
        kept = exposures(sink, metrics, max_queue=10, flush_s=60.0)
        kept.start()
        for n in range(13):
            kept.offer(Record(n))
        await asyncio.sleep(0.1)
        written = len(sink.lines)
        await kept.close()
        return written, metrics

    written, metrics = asyncio.run(use())
    assert written == 10
    assert counted(metrics, 'ctr_exposures_total{outcome="queue_full"} 3.0')


def test_a_full_disk_drops_is_logged_once_and_passes():
    async def use():
        sink, metrics = MemorySink(), Metrics()
        kept = exposures(sink, metrics)
        sink.broken = True
        kept.start()
        for n in range(3):
            kept.offer(Record(n))
            await asyncio.sleep(0.05)
        sink.broken = False
        kept.offer(Record(3))
        await kept.close()
        return sink, metrics

    with capture_logs() as records:
        sink, metrics = asyncio.run(use())
    assert sink.lines == [b'{"n":3}\n']
    assert counted(metrics, 'ctr_exposures_total{outcome="write_failed"} 3.0')
    assert [r["event"] for r in records] == ["exposures_not_written", "exposures_written_again"]
    assert "No space left" in records[0]["error"]


def test_sampling_keeps_its_share():
    metrics = Metrics()
    assert not any(exposures(MemorySink(), metrics, sample_ratio=0.0).sampled() for _ in range(1000))
    half = exposures(MemorySink(), metrics, sample_ratio=0.5)
    assert 400 < sum(half.sampled() for _ in range(1000)) < 600


def test_feedback_that_waits_for_the_disk_shares_one_write():
    async def use():
        sink = MemorySink()
        kept = FeedbackLog(sink)
        kept.start()
        sink.gate.clear()
        waiting = [asyncio.create_task(kept.append(b"%d\n" % n)) for n in range(20)]
        await asyncio.sleep(0.05)
        unanswered = not any(task.done() for task in waiting)
        sink.gate.set()
        await asyncio.gather(*waiting)
        await kept.close()
        return unanswered, sink

    unanswered, sink = asyncio.run(use())
    assert unanswered
    assert sorted(map(int, sink.lines)) == list(range(20))
    assert len(sink.batches) <= 2
    assert sink.closed


def test_feedback_that_cannot_be_written_is_not_acknowledged():
    async def use():
        sink = MemorySink()
        kept = FeedbackLog(sink)
        kept.start()
        sink.broken = True
        for _ in range(2):
            with pytest.raises(FeedbackUnavailable, match="could not be written; send it again"):
                await kept.append(b"a\n")
        sink.broken = False
        await kept.append(b"b\n")
        await kept.close()
        with pytest.raises(FeedbackUnavailable, match="not taken any more"):
            await kept.append(b"c\n")
        return sink

    with capture_logs() as records:
        assert asyncio.run(use()).lines == [b"b\n"]
    assert [r["event"] for r in records] == ["feedback_not_written", "feedback_written_again"]


def test_a_caller_that_leaves_does_not_disturb_the_others(monkeypatch):
    async def use():
        sink = MemorySink()
        kept = FeedbackLog(sink)
        kept.start()
        sink.gate.clear()
        leaving, staying = (asyncio.create_task(kept.append(line)) for line in (b"a\n", b"b\n"))
        await asyncio.sleep(0.02)
        leaving.cancel()
        monkeypatch.setattr(exposure, "MAX_PENDING_BYTES", 3)
        pending = asyncio.create_task(kept.append(b"c\n"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="more than 3 bytes of feedback wait for the disk"):
            await kept.append(b"d\n")
        sink.gate.set()
        await asyncio.gather(staying, pending)
        await kept.close()
        return sink

    assert asyncio.run(use()).lines == [b"a\n", b"b\n", b"c\n"]


def test_a_disk_that_hangs_does_not_stop_the_drain(monkeypatch):
    monkeypatch.setattr(exposure, "CLOSE_TIMEOUT_S", 0.1)

    async def use():
        sink = MemorySink()
        kept = exposures(sink, Metrics())
        kept.start()
        sink.gate.clear()
        kept.offer(Record(1))
        begun = time.monotonic()
        await kept.close()
        took = time.monotonic() - begun
        sink.gate.set()
        return took

    with capture_logs() as records:
        assert asyncio.run(use()) < 2
    assert [r["event"] for r in records] == ["exposures_not_closed"]
