"""What no client library would send, on bare sockets: broken heads, lengths and chunks."""

import json
import socket

import httpx
import pytest

from tests.support.process import running

BODY = json.dumps({"domain": "home", "items": [{"id": "i1"}]}).encode()
HEAD = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
RAW = {
    "a body shorter than declared": HEAD + b"content-length: 500\r\n\r\n" + BODY,
    "a body longer than declared": HEAD + b"content-length: 5\r\n\r\n" + BODY,
    "a negative length": HEAD + b"content-length: -1\r\n\r\n" + BODY,
    "a length that is no number": HEAD + b"content-length: ten\r\n\r\n" + BODY,
    "a length beyond 64 bits": HEAD + b"content-length: " + b"9" * 40 + b"\r\n\r\n" + BODY,
    "two lengths": HEAD + b"content-length: 3\r\ncontent-length: 40\r\n\r\n" + BODY,
    "length and chunks": HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk that is no chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + BODY,
    "a chunk that never comes": HEAD + b"transfer-encoding: chunked\r\n\r\n40\r\n{",
    "no version": b"POST /score\r\n\r\n" + BODY,
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "a header without end": HEAD + b"x-long: " + b"a" * 100_000,
    "a path of bytes": b"POST /\xff\xfe\x00 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    "an escaped path": b"POST /%73core%00%ff HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    "a broken escape": b"GET /v2/models/%zz HTTP/1.1\r\nhost: x\r\n\r\n",
    "a path of slashes": b"GET " + b"/" * 5000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    "an unknown method": b"BREW /score HTTP/1.1\r\nhost: x\r\n\r\n",
    "an upgrade": b"GET /score HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "nothing at all": b"",
}
LEAKS = (b"Traceback", b'File "', b"site-packages")


@pytest.fixture(scope="module")
def service(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    with running(small.store, folder, "--drain-pause-s", "0", "--deadline-ms", "300") as started:
        started.wait_until("/health/ready", 200)
        yield started


def exchange(url, raw):
    """Send bytes, close the sending side, and read until the other side closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        reply = b""
        try:
            while piece := connection.recv(65536):
                reply += piece
        except ConnectionResetError:
            pass
        return reply


@pytest.mark.parametrize("name", RAW)
def test_broken_http_is_refused_or_dropped_and_the_next_caller_is_served(service, name):
    reply = exchange(service.url, RAW[name])
    assert not any(leak in reply for leak in LEAKS), reply
    assert not reply.startswith(b"HTTP/1.1 5") or reply.startswith(b"HTTP/1.1 504"), reply
    answer = httpx.post(service.url + "/score", content=BODY, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert "Traceback" not in service.log()
    assert "score_failed" not in service.log()
    assert "request_failed" not in service.log()


def test_a_reply_comes_in_one_piece_and_pipelined_requests_in_order(service):
    host, port = service.url.removeprefix("http://").split(":")
    whole = HEAD + b"content-length: %d\r\n" % len(BODY)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(whole + b"\r\n" + BODY)
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert len(json.loads(body)["scores"]) == 1
        ids = [b"first", b"second", b"third"]
        connection.sendall(b"".join(whole + b"x-request-id: " + i + b"\r\n\r\n" + BODY for i in ids))
        reply = b""
        while reply.count(b'"scores"') < len(ids):
            reply += connection.recv(65536)
    assert [part.split(b"\r\n")[0] for part in reply.split(b"x-request-id: ")[1:]] == ids
