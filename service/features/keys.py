"""Names of stored features: `prefix:schema digest:entity:id`.

The first 12 digits of the schema's digest stand in every key, so rows of an old and a new schema
live side by side and are never mixed. A key has no hash tag: braces in ids are escaped, hence a
cluster spreads entities over all its slots by their whole key. Invariant: distinct ids have distinct
keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.contract.schema import Entity

DIGEST_DIGITS = 12
_ESCAPES = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


class KeySpace:
    """Keys of one entity under one schema.

    Args:
        prefix: Of all keys of this deployment.
        digest: Of the schema.
        entity: Whose rows.
    """

    def __init__(self, prefix: str, digest: str, entity: Entity) -> None:
        self.entity = entity
        self.head = f"{prefix}:{digest[:DIGEST_DIGITS]}:{entity.value}:"
        self._raw_head = self.head.encode()
        self._bulk_heads: dict[int, str] = {}

    def key(self, value: str) -> bytes:
        """Key of one id."""
        return self._raw_head + value.translate(_ESCAPES).encode("utf-8", "surrogatepass")

    def keys(self, ids: Sequence[str]) -> list[bytes]:
        """Keys of ids, in order."""
        text = "".join(ids)
        if "%" in text or "{" in text or "}" in text:
            return [self.key(value) for value in ids]
        head = self._raw_head
        return [head + value.encode("utf-8", "surrogatepass") for value in ids]

    def bulk(self, ids: Sequence[str]) -> bytes:
        """Keys as the bulk strings of a Redis command (RESP), ready to be sent.

        Plain ASCII ids, the usual case, cost one join instead of an encoding each.
        """
        heads = self._bulk_heads
        try:
            text = "\r\n".join([heads[len(value)] + value for value in ids])
        except KeyError:
            self._bulk_heads = {
                n: f"${len(self.head) + n}\r\n{self.head}" for n in set(map(len, ids)) | set(heads)
            }
            return self.bulk(ids)
        if text.isascii() and "%" not in text and "{" not in text and "}" not in text:
            return text.encode() + b"\r\n" if ids else b""
        return b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in self.keys(ids)])


__all__ = ["DIGEST_DIGITS", "KeySpace"]
