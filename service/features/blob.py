"""One entity's encoded row as bytes, and many of them back at once.

    8 bytes   magic and version
    8 bytes   event time, ms since 1970, signed
    4 I + 4 F int32 ids and float32 numbers, padded with zeros to whole 8 bytes
    8 bytes   checksum

All little-endian. The checksum is multilinear (D. Lemire, O. Kaser, "Strongly universal string
hashing is fast", The Computer Journal 57(11), 2014): the sum over all words of the blob and of its
id, each times an odd constant, modulo 2**64. It changes with any one word, and binds a blob to its
entity and id, so a row that arrives for another id is found out. Invariant: what `decode` returns
lies within the encoders and is finite, whatever the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.layout import EntityLayout
from service.features.errors import BlobError
from service.features.keys import KeySpace
from service.features.source import FAILED, FRESH, INVALID, MISSING

MAGIC: Final = int.from_bytes(b"ctrrow\x01\x00", "little")
HEAD_WORDS: Final = 2
GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15
UNREAD: Final = object()
"""Stands for the value of a key that could not be read."""

Words = NDArray[np.uint64]


def mixing_constants(count: int, seed: int) -> Words:
    """(count,) uint64 odd numbers: SplitMix64 (G. Steele et al., OOPSLA 2014) from a seed."""
    with np.errstate(over="ignore"):
        state = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (state ^ (state >> np.uint64(31))) | np.uint64(1)


def _as_words(texts: Sequence[Any]) -> Words:
    """(n, w) uint64 of n strings, zero-padded to the longest; raises UnicodeEncodeError beyond ASCII."""
    width = -(-max(map(len, texts), default=0) // 8) * 8 or 8
    return np.array(texts, dtype=f"S{width}").view("<u8").reshape(len(texts), width // 8)


@dataclass(frozen=True, slots=True)
class DecodedRows:
    """Rows as stored.

    Attributes:
        block: n rows, the default one where there is none.
        event_ms: (n,) int64, 0 where there is none.
        status: (n,) uint8 of places in `STATUSES`: fresh for whatever is stored and sound.
    """

    block: EncodedBlock
    event_ms: NDArray[np.int64]
    status: NDArray[np.uint8]


class BlobCodec:
    """Packs and unpacks the rows of one entity.

    Args:
        layout: Of the entity.
        limits: (int_width,) int64, exclusive upper bounds of ids.
        space: Names the entity and schema that blobs are bound to.
    """

    def __init__(self, layout: EntityLayout, limits: NDArray[np.int64], space: KeySpace) -> None:
        self.layout = layout
        self._limits = limits.astype(np.uint32)
        width = layout.int_width + layout.float_width
        self._int_columns = slice(2 * HEAD_WORDS, 2 * HEAD_WORDS + layout.int_width)
        self._float_columns = slice(self._int_columns.stop, self._int_columns.stop + layout.float_width)
        self._num_words = HEAD_WORDS + -(-width // 2) + 1
        self._mix = mixing_constants(self._num_words - 1, seed=1)
        self._id_mix = mixing_constants(64, seed=2)
        head = _as_words([space.head])
        self._seed = int((head * mixing_constants(head.shape[1], seed=3)).sum(dtype=np.uint64))
        self.num_bytes = 8 * self._num_words

    def encode(self, ids: Sequence[str], block: EncodedBlock, event_ms: NDArray[np.int64]) -> list[bytes]:
        """Blobs of n rows.

        Args:
            ids: n ids.
            block: n rows.
            event_ms: (n,) int64.

        Raises:
            BlobError: An id is out of range or a number not finite.
        """
        bad = np.flatnonzero(~self._sound(block.ints.view(np.uint32), block.floats))
        if len(bad):
            row = int(bad[0])
            raise BlobError(f"row {row} ('{ids[row]}') has an id out of range or a number that is not finite")
        words = np.zeros((len(ids), self._num_words), dtype="<u8")
        words[:, 0] = MAGIC
        words[:, 1] = event_ms.view(np.uint64)
        halves = words.view("<u4")
        halves[:, self._int_columns] = block.ints.view(np.uint32)
        halves[:, self._float_columns] = block.floats.view(np.uint32)
        words[:, -1] = self._checksums(ids, words)
        raw, size = words.tobytes(), self.num_bytes
        return [raw[start : start + size] for start in range(0, len(raw), size)]

    def decode(self, ids: Sequence[str], values: Sequence[Any]) -> DecodedRows:
        """Rows of n values as read.

        Args:
            ids: n ids.
            values: n of bytes, None (not stored) or `UNREAD`; anything else is invalid.
        """
        try:
            raw = b"".join(values)
        except TypeError:
            return self._decode_some(ids, values)
        if len(raw) != len(ids) * self.num_bytes:
            return self._decode_some(ids, values)
        return self._unpack(ids, raw)

    def _decode_some(self, ids: Sequence[str], values: Sequence[Any]) -> DecodedRows:
        """As `decode`, where some values are absent or of another length."""
        status = np.full(len(ids), INVALID, dtype=np.uint8)
        places = []
        for place, value in enumerate(values):
            if value is None:
                status[place] = MISSING
            elif value is UNREAD:
                status[place] = FAILED
            elif isinstance(value, bytes) and len(value) == self.num_bytes:
                places.append(place)
        found = self._unpack([ids[p] for p in places], b"".join([values[p] for p in places]))
        ints = np.tile(self.layout.default_ints, (len(ids), 1))
        floats = np.tile(self.layout.default_floats, (len(ids), 1))
        event_ms = np.zeros(len(ids), dtype=np.int64)
        ints[places], floats[places] = found.block.ints, found.block.floats
        event_ms[places], status[places] = found.event_ms, found.status
        return DecodedRows(EncodedBlock(ints, floats), event_ms, status)

    def _unpack(self, ids: Sequence[str], raw: bytes) -> DecodedRows:
        words: Words = np.frombuffer(raw, dtype="<u8").reshape(len(ids), self._num_words)
        halves = words.view("<u4")
        ints = halves[:, self._int_columns]
        floats = halves[:, self._float_columns].view("<f4")
        good = self._sound(ints, floats)
        good &= words[:, 0] == MAGIC
        good &= words[:, -1] == self._checksums(ids, words)
        event_ms = words[:, 1].view("<i8")
        if good.all():
            block = EncodedBlock(ints.view("<i4"), floats)
            return DecodedRows(block, event_ms, np.zeros(len(ids), dtype=np.uint8))
        status = np.where(good, np.uint8(FRESH), np.uint8(INVALID))
        keep = good[:, None]
        block = EncodedBlock(
            np.where(keep, ints.view("<i4"), self.layout.default_ints),
            np.where(keep, floats, self.layout.default_floats),
        )
        return DecodedRows(block, np.where(good, event_ms, 0), status)

    def _sound(self, ints: NDArray[np.uint32], floats: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(n,) bool: ids within their encoders (a negative one is a huge unsigned), numbers finite."""
        in_range = ints < self._limits
        # The sum of finite float32 numbers is finite in float64, that of others is not.
        if in_range.all() and math.isfinite(floats.sum(dtype=np.float64)):
            return np.ones(len(ints), dtype=np.bool_)
        return np.asarray(in_range.all(axis=1) & np.isfinite(floats).all(axis=1))

    def _checksums(self, ids: Sequence[str], words: Words) -> Words:
        """(n,) uint64 of n rows and their ids; the last word of a row is left out."""
        try:
            named = _as_words(ids)
        except UnicodeEncodeError:
            named = _as_words([value.encode("utf-8", "surrogatepass") for value in ids])
        if named.shape[1] > len(self._id_mix):
            self._id_mix = mixing_constants(named.shape[1], seed=2)
        sums: Words = words[:, :-1] @ self._mix
        sums += named @ self._id_mix[: named.shape[1]]
        sums += np.uint64(self._seed)
        return sums


__all__ = ["MAGIC", "UNREAD", "BlobCodec", "DecodedRows", "mixing_constants"]
