"""The open loop against a server that stalls: what waits for it counts from when it should have started."""

import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from loadtests.open_loop import OpenLoop

STALL_S = 0.4


@contextmanager
def server(answer):
    """One connection after the other; `answer(n)` makes the n-th reply, None closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        over = threading.Event()

        def serve():
            number = 0
            while not over.is_set():
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    continue
                connection.settimeout(0.1)
                with connection:
                    while not over.is_set():
                        try:
                            if not connection.recv(1 << 16):
                                break
                        except TimeoutError:
                            continue
                        reply = answer(number)
                        number += 1
                        if reply is None:
                            break
                        connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            over.set()
            thread.join()


def reply(status=b"200 OK", body=b"{}"):
    return b"HTTP/1.1 " + status + b"\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body


def load(port, starts, seconds):
    ended = []
    loop = OpenLoop(port, np.asarray(starts), [b"{}"], connections=1, tell=ended.append)
    seen = loop.run(seconds)
    return seen, sorted(ended, key=lambda told: told.number)


def test_a_stall_shows_in_every_request_that_should_have_started_meanwhile():
    """The first reply takes 0.4 s; requests due each 50 ms after it wait for the one connection."""

    def answer(number):
        if number == 0:
            time.sleep(STALL_S)
        return reply()

    starts = [0.05 * k for k in range(8)]
    with server(answer) as port:
        seen, ended = load(port, starts, 0.4)
    assert [told.number for told in ended] == list(range(8))
    assert [told.intended_s for told in ended] == starts
    waited = [told.done_s - told.intended_s for told in ended]
    for number, seconds in enumerate(waited):
        assert seconds >= STALL_S - starts[number] - 0.01
    # Since sending, the same requests look fast: that is the omission.
    assert np.median([told.done_s - told.sent_s for told in ended[1:]]) < STALL_S / 2
    assert np.median(waited) > np.median([told.done_s - told.sent_s for told in ended])
    assert (len(seen.replies), seen.num_broken, seen.num_unanswered) == (8, 0, 0)


def test_every_request_ends_once_also_where_connections_break():
    with server(lambda number: None if number == 1 else reply(body=b'{"n": %d}' % number)) as port:
        seen, ended = load(port, [0.0, 0.1, 0.2], 0.3)
    assert [(told.status, told.body) for told in ended] == [(200, b'{"n": 0}'), (0, b""), (200, b'{"n": 2}')]
    assert seen.num_broken == 1


def test_refusals_are_told_with_their_status_and_counted_without_retry_after():
    with server(lambda _: reply(b"429 Too Many Requests")) as port:
        seen, ended = load(port, [0.0], 0.1)
    assert [told.status for told in ended] == [429]
    assert seen.no_retry_after == 1


@pytest.mark.parametrize("starts", [[0.0, 0.01]])
def test_what_never_gets_a_reply_ends_at_last(starts, monkeypatch):
    monkeypatch.setattr("loadtests.open_loop.GRACE_S", 0.2)

    def never(_):
        time.sleep(0.6)
        return reply()

    with server(never) as port:
        seen, ended = load(port, starts, 0.1)
    assert seen.num_unanswered == 2
    assert [told.status for told in ended] == [0, 0]
    assert np.isnan([ended[0].done_s, ended[1].sent_s, ended[1].done_s]).all()
    assert ended[0].sent_s >= 0
