"""Some rows of a prepared data set, read as if they were all of it.

Gives `RowView`, which any `RowReader` takes. Reads row groups as they come, so memory stays that of a row
group and one boolean per row. Invariant: a view's rows are in the order of the log, and a reader over it
shuffles and resumes as over a whole data set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.contract.schema import Entity
from training.data.entity_rows import EntityRows
from training.data.prepared import PreparedDataset
from training.data.row_files import RowFile, Rows

RowMask = NDArray[np.bool_]


def domain_column(prepared: PreparedDataset, split: str) -> NDArray[np.int32]:
    """(n,) domain index of each row of a split in the order of the log, D for unknown."""
    file = prepared.row_file(split)
    if isinstance(file, _KeptRows):
        return domain_column(file.base, split)[file.kept]
    with pq.ParquetFile(prepared.path / "rows" / f"{split}.parquet") as table:
        groups = range(table.metadata.num_row_groups)
        parts = [table.read_row_group(g, columns=["domain"])["domain"].to_numpy() for g in groups]
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


def rows_of_domains(prepared: PreparedDataset, split: str, domains: Collection[int]) -> RowMask:
    """(n,) which rows of a split are of these domain indices."""
    wanted: RowMask = np.isin(domain_column(prepared, split), np.array(sorted(domains), dtype=np.int32))
    return wanted


@dataclass(frozen=True)
class RowView(PreparedDataset):
    """A prepared data set of which only some rows are read.

    Attributes:
        base: The data set itself.
        kept: Per split, (n,) which rows are read; a split that is not named is read whole.
    """

    base: PreparedDataset
    kept: Mapping[str, RowMask]

    @property
    def rows(self) -> dict[str, int]:
        """Rows per split."""
        return {split: sum(counts.values()) for split, counts in self.domain_rows.items()}

    @property
    def domain_rows(self) -> dict[str, dict[str, int]]:
        """Per split, rows of each named domain that has any."""
        counts = dict(self.base.domain_rows)
        names = self.schema.domains
        for split, mask in self.kept.items():
            found = np.bincount(domain_column(self.base, split)[mask], minlength=len(names))
            counts[split] = {name: int(n) for name, n in zip(names, found, strict=False) if n}
        return counts

    @property
    def entities(self) -> dict[Entity, EntityRows]:
        """Those of the base, which holds them once."""
        return self.base.entities

    def row_file(self, split: str) -> RowFile:
        """The kept rows of one split."""
        if split not in self.kept:
            return self.base.row_file(split)
        return _KeptRows(self.base, split, self.kept[split])


def view(prepared: PreparedDataset, kept: Mapping[str, RowMask]) -> RowView:
    """Read only the rows marked in `kept`, (n,) per split."""
    return RowView(path=prepared.path, schema=prepared.schema, info=prepared.info, base=prepared, kept=kept)


class _KeptRows(RowFile):
    """Leaves rows out of each row group."""

    def __init__(self, base: PreparedDataset, split: str, kept: RowMask) -> None:
        self.base, self.kept = base, kept
        self._inner = base.row_file(split)
        ends = np.cumsum(self._inner.group_rows)[:-1]
        self._parts = np.split(kept, ends)
        self.group_rows = tuple(int(part.sum()) for part in self._parts)

    def read_group(self, index: int) -> Rows:
        """All columns of the kept rows of one row group."""
        mask = self._parts[index]
        return {name: column[mask] for name, column in self._inner.read_group(index).items()}

    def close(self) -> None:
        """Close the file."""
        self._inner.close()


def in_memory(prepared: PreparedDataset, split: str, rows: Rows) -> PreparedDataset:
    """Read `rows` (columns of a row file, in any order) as the whole of one split."""
    return _Held(
        path=prepared.path,
        schema=prepared.schema,
        info=prepared.info,
        base=prepared,
        kept={},
        held={split: rows},
    )


@dataclass(frozen=True)
class _Held(RowView):
    held: Mapping[str, Rows]

    def row_file(self, split: str) -> RowFile:
        """The rows held."""
        return _RowsInMemory(self.held[split])


class _RowsInMemory(RowFile):
    """One row group that is no file."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.group_rows = (len(rows["domain"]),)

    def read_group(self, index: int) -> Rows:  # noqa: ARG002 (there is one)
        """All columns."""
        return self._rows

    def close(self) -> None:
        """Nothing."""
