"""Commands over pipes and between threads: answers find their question, silence is told."""

import asyncio
import multiprocessing
import threading
from contextlib import contextmanager

from structlog.testing import capture_logs

from service.links import CommandReader, OwnProcess, PipedWorkers, WorkerLink


async def do(command):
    """Answers late what begins with `late`, never what is `never`."""
    if command == "crash":
        raise ZeroDivisionError
    if command.startswith("late"):
        await asyncio.sleep(0.05)
    if command == "never":
        await asyncio.Event().wait()
    return {"did": command}


@contextmanager
def linked():
    """A link and the reader at its other end, on the running loop."""
    ours, its = multiprocessing.Pipe()
    reader = CommandReader(its, do)
    reader.start()
    try:
        yield WorkerLink(ours), reader
    finally:
        reader.stop()
        asyncio.get_running_loop().remove_reader(ours.fileno()) if not ours.closed else None
        ours.close()


def test_answers_find_their_questions_whatever_their_order():
    async def use():
        with linked() as (link, _):
            asked = [f"late {n}" if n % 2 else f"now {n}" for n in range(20)]
            return asked, await asyncio.gather(*(link.ask(command, 10) for command in asked))

    asked, answers = asyncio.run(use())
    assert [answer["did"] for answer in answers] == asked


def test_silence_failure_and_the_end_of_a_worker_are_told():
    async def use():
        with linked() as (link, reader):
            silent = await link.ask("never", 0.05)
            failed = await link.ask("crash", 10)
            waiting = asyncio.create_task(link.ask("never", 10))
            await asyncio.sleep(0.05)
            reader.stop()
            return silent, failed, await waiting, await link.ask("now", 10)

    with capture_logs() as records:
        silent, failed, ended, after = asyncio.run(use())
    assert silent == {"error": "did not answer within 0.05 s"}
    assert failed == {"error": "failed; its log has the cause"}
    assert ended == after == {"error": "has ended"}
    assert "command_failed" in {record["event"] for record in records}


def test_workers_answer_in_their_order_and_one_that_is_not_there_is_starting():
    async def use():
        with linked() as (first, _), linked() as (second, _):
            fleet = PipedWorkers(lambda: [(0, first), (1, None), (2, second)])
            return await fleet.ask("late", 10)

    assert asyncio.run(use()) == [
        {"worker": 0, "did": "late"},
        {"worker": 1, "error": "is starting"},
        {"worker": 2, "did": "late"},
    ]


def test_the_own_process_is_asked_across_threads():
    fleet = OwnProcess(do)
    assert asyncio.run(fleet.ask("now", 1)) == [{"worker": 0, "error": "is starting"}]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    fleet.loop = loop
    assert asyncio.run(fleet.ask("now", 10)) == [{"worker": 0, "did": "now"}]
    assert asyncio.run(fleet.ask("never", 0.05)) == [{"worker": 0, "error": "did not answer within 0.05 s"}]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert asyncio.run(fleet.ask("now", 1)) == [{"worker": 0, "error": "has ended"}]
