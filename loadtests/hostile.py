"""Hostile requests, from a seed: valid ones damaged in every way that a caller, a proxy or a bug might.

Yields requests as an ASGI server would hand them over. Invariant: the same seed and examples give the same
requests in the same order.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

JSON: Final = (b"content-type", b"application/json")
RAW: Final = "@raw@"
DEEP: Final = 100_000
LONG: Final = 5000

NUMBERS: Final = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e400",
        "1e-400",
        "1e308",
        "3.5e38",
        "-3.4e38",
        "-0",
        "-0.0",
    ),
    *("9" * 400, "9223372036854775808", "18446744073709551616", "-9223372036854775809", "2147483648", "-1"),
    *("1.0000000000000000000000001", "0x10", "01", "1.", ".5", "+1", "1e", "--1", "1_000"),
)
STRINGS: Final = (
    *('"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"\\x41"', '"\\', '"\t"', '"\\uD83D"', '""', '" "'),
    *(
        '"' + "x" * LONG + '"',
        '"' + "\\u4e2d" * 300 + '"',
        '"\'; DROP TABLE items; --"',
        '"${jndi:ldap://x}"',
    ),
    *(
        '"../../etc/passwd"',
        '"{{7*7}}"',
        '"%s%n%x"',
        '"__proto__"',
        '"\\ufeff"',
        '"\\u202e"',
        '"nan"',
        '"1e5"',
    ),
)
OTHERS: Final = ("null", "true", "false", "[]", "{}", "[[]]", '[{"id":1}]', "undefined", "None", "")
HEADERS: Final = (
    (b"content-type", b"text/plain"),
    (b"content-type", b"application/json; charset=utf-16"),
    (b"content-type", b"\xff\xfe"),
    (b"content-type", b"application/json" * 100),
    (b"content-encoding", b"gzip"),
    (b"content-encoding", b"identity"),
    (b"x-request-id", b"\r\nset-cookie: a=b"),
    (b"x-request-id", b"\xff" * 40),
    (b"x-request-id", b"x" * 4000),
    (b"authorization", b"Bearer \xff\xff"),
    (b"x-ctr-arm", b"\xff"),
    (b"x-ctr-arm", b"treatment"),
    (b"x-deadline-ms", b"-1"),
    (b"x-deadline-ms", b"1e9"),
    (b"x-deadline-ms", b"9" * 400),
    (b"x-deadline-ms", b"1"),
    (b"x-deadline-ms", b"\xb2"),
    (b"traceparent", b"00-zz-zz-01"),
    (b"inference-header-content-length", b"-1"),
    (b"inference-header-content-length", b"12"),
    (b"inference-header-content-length", b"9" * 400),
    (b"inference-header-content-length", b"\xb2"),
)
LENGTHS: Final = (b"0", b"1", b"999999999999", b"-5", b"abc", b"\xb2", b"", b"1e3", b"9" * 400)


@dataclass(frozen=True)
class Hostile:
    """One request.

    Attributes:
        kind: How it is damaged.
        path: Of the request.
        headers: Of the request.
        messages: That the server receives; after the last one nothing comes any more.
    """

    kind: str
    path: str
    headers: list[tuple[bytes, bytes]]
    messages: list[dict[str, Any]]


class Generator:
    """Makes hostile requests of valid ones.

    Args:
        valid: Bodies by path.
        seed: Of every choice.
    """

    def __init__(self, valid: Mapping[str, list[Any]], *, seed: int) -> None:
        self._valid = valid
        self._random = random.Random(seed)
        self._kinds: dict[str, Callable[[Any], bytes]] = {
            "truncated": self._truncated,
            "wrong value": self._wrong_value,
            "several wrong values": lambda body: self._replace(body, self._random.randint(2, 6)),
            "wrong key": self._wrong_key,
            "duplicate key": self._duplicate_key,
            "dropped": self._dropped,
            "deep": self._deep,
            "invalid utf-8": self._invalid_utf8,
            "flipped bytes": self._flipped,
            "spliced": self._spliced,
            "many": self._many,
            "random bytes": lambda _: self._random.randbytes(self._random.randint(0, 200)),
        }

    def requests(self, count: int) -> Iterator[Hostile]:
        """The first `count` requests; half of them go to the first path."""
        paths, kinds = list(self._valid), list(self._kinds)
        for _ in range(count):
            path = paths[0] if self._random.random() < 0.5 else self._random.choice(paths[1:])
            kind = self._random.choice(kinds)
            body = self._kinds[kind](copy.deepcopy(self._random.choice(self._valid[path])))
            headers, messages, how = self._sent(body)
            yield Hostile(f"{kind}{how}", path, headers, messages)

    def _sent(self, body: bytes) -> tuple[list[tuple[bytes, bytes]], list[dict[str, Any]], str]:
        """Head and pieces; one request in five is also odd in these."""
        headers = [JSON, (b"content-length", b"%d" % len(body))]
        whole = [{"type": "http.request", "body": body, "more_body": False}]
        match self._random.randrange(20):
            case 0:
                return [JSON, (b"content-length", self._random.choice(LENGTHS))], whole, ", wrong length"
            case 1:
                return [*headers, self._random.choice(HEADERS)], whole, ", odd header"
            case 2:
                return [self._random.choice(HEADERS), *headers], whole, ", odd header"
            case 3:
                cuts = sorted(self._random.randint(0, len(body)) for _ in range(3))
                parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
                pieces = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
                pieces.append({"type": self._random.choice(("http.disconnect", "http.request")), "body": b""})
                return headers[:1], pieces, ", in pieces"
        return headers, whole, ""

    def _places(self, body: Any) -> list[tuple[Any, Any]]:
        """Every (container, key) below a body."""
        found: list[tuple[Any, Any]] = []
        waiting = [body]
        while waiting:
            node = waiting.pop()
            pairs = (
                node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            )
            for key, value in pairs:
                found.append((node, key))
                waiting.append(value)
        return found

    def _text(self) -> str:
        """JSON text of an odd value, or something that is none."""
        return self._random.choice(self._random.choice((NUMBERS, NUMBERS, STRINGS, OTHERS)))

    def _replace(self, body: Any, count: int) -> bytes:
        """Put odd values in the places of others."""
        texts = []
        for _ in range(count):
            places = self._places(body)
            if not places:
                break
            node, key = self._random.choice(places)
            node[key] = f"{RAW}{len(texts)}{RAW}"
            texts.append(self._text())
        text = json.dumps(body)
        for number, odd in enumerate(texts):
            text = text.replace(f'"{RAW}{number}{RAW}"', odd)
        return text.encode("utf-8", "surrogatepass")

    def _wrong_value(self, body: Any) -> bytes:
        return self._replace(body, 1)

    def _wrong_key(self, body: Any) -> bytes:
        node = self._object(body)
        if node is None:
            return b"{}"
        node[f"{RAW}0{RAW}"] = self._random.choice((1, None, [], {}, "x"))
        return json.dumps(body).replace(f'"{RAW}0{RAW}"', self._random.choice(STRINGS)).encode()

    def _duplicate_key(self, body: Any) -> bytes:
        node = self._object(body)
        if not node:
            return b'{"domain":"a","domain":"b"}'
        key = self._random.choice(list(node))
        node[f"{RAW}0{RAW}"] = self._random.choice((node[key], None, 1, []))
        return json.dumps(body).replace(f"{RAW}0{RAW}", key).encode()

    def _object(self, body: Any) -> dict[str, Any] | None:
        nodes = [body, *(node[key] for node, key in self._places(body))]
        objects = [node for node in nodes if isinstance(node, dict)]
        return self._random.choice(objects) if objects else None

    def _dropped(self, body: Any) -> bytes:
        for _ in range(self._random.randint(1, 3)):
            if places := self._places(body):
                node, key = self._random.choice(places)
                del node[key]
        return json.dumps(body).encode()

    def _truncated(self, body: Any) -> bytes:
        raw = json.dumps(body).encode()
        return raw[: self._random.randrange(len(raw))]

    def _deep(self, body: Any) -> bytes:
        """Nesting in the place of a value; some as deep as to break a recursive reader, or just not."""
        depth = self._random.choice(
            (
                DEEP,
                self._random.randint(2, 40),
                self._random.randint(40, 2000),
                self._random.randint(900, 1000),
            )
        )
        opening, closing = self._random.choice((("[", "]"), ('{"a":', "}"), ('[{"id":', "}]")))
        closed = self._random.random() < 0.5
        node, key = self._random.choice(self._places(body))
        node[key] = RAW
        nested = opening * depth + "1" + (closing * depth if closed else "")
        return json.dumps(body).replace(f'"{RAW}"', nested).encode()

    def _invalid_utf8(self, body: Any) -> bytes:
        raw = bytearray(json.dumps(body, ensure_ascii=False).encode())
        odd = self._random.choice(
            (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x80", b"\xe4")
        )
        place = self._random.randrange(len(raw))
        raw[place:place] = odd
        return bytes(raw)

    def _flipped(self, body: Any) -> bytes:
        raw = bytearray(json.dumps(body).encode())
        for _ in range(self._random.randint(1, 8)):
            raw[self._random.randrange(len(raw))] = self._random.randrange(256)
        return bytes(raw)

    def _spliced(self, body: Any) -> bytes:
        """A piece of the body, copied to another place."""
        raw = json.dumps(body).encode()
        start, end, place = (self._random.randrange(len(raw) + 1) for _ in range(3))
        piece = raw[min(start, end) : max(start, end)]
        return raw[:place] + piece * self._random.randint(1, 3) + raw[place:]

    def _many(self, body: Any) -> bytes:
        """A list, or a string, made longer than anybody needs."""
        nodes = [(node, key) for node, key in self._places(body) if isinstance(node[key], list | str)]
        if nodes:
            node, key = self._random.choice(nodes)
            node[key] = node[key] * self._random.choice((2, 200, 1100))
        return json.dumps(body).encode()


__all__ = ["Generator", "Hostile"]
