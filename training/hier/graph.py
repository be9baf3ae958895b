"""The knowledge graph: which entities are linked, by which relation.

Entities of one item are linked by a relation that names their kinds; an ontology's triples are added with
their inverses. Reads no clicks: the graph is the same whichever domain is held out. Invariant: every edge
has its inverse, no edge is there twice, and equal content has equal digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from training.hier.entities import EntityVocabulary
from training.hier.ragged import IntArray, Ragged

INVERSE = "^-1"


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """n edges among E entities.

    Attributes:
        num_entities: E, the rows of an entity table.
        relations: Names, R of them.
        head, relation, tail: (n,) int64; `head` gathers from `tail`.
    """

    num_entities: int
    relations: tuple[str, ...]
    head: IntArray
    relation: IntArray
    tail: IntArray

    @property
    def digest(self) -> str:
        """Sha256 (hex) of the content."""
        total = hashlib.sha256(f"{self.num_entities} {self.relations}".encode())
        for array in (self.head, self.relation, self.tail):
            total.update(array.tobytes())
        return total.hexdigest()


def build_graph(
    sets: Ragged, vocabulary: EntityVocabulary, ontology: Iterable[tuple[str, str, str]] = ()
) -> KnowledgeGraph:
    """Link entities.

    Args:
        sets: Known entities of each item.
        vocabulary: Of the entities.
        ontology: (head, relation, tail) by name; triples of entities that are not known are left out.
    """
    kinds = [vocabulary.kind(row) for row in vocabulary.rows.values()]
    names = sorted(set(kinds))
    kind_of = np.zeros(vocabulary.num_rows, dtype=np.int64)
    kind_of[vocabulary.num_rows - len(kinds) :] = [names.index(kind) for kind in kinds]
    head, tail = _pairs(sets)
    code = kind_of[head] * len(names) + kind_of[tail]
    used = np.unique(code)
    relations = [f"{names[c // len(names)]}~{names[c % len(names)]}" for c in used.tolist()]
    edges = [np.stack([head, np.searchsorted(used, code), tail], axis=1)]
    rows = vocabulary.rows
    for first, relation, last in sorted(set(ontology)):
        if first not in rows or last not in rows:
            continue
        for name, start, end in ((relation, first, last), (relation + INVERSE, last, first)):
            if name not in relations:
                relations.append(name)
            edges.append(np.array([[rows[start], relations.index(name), rows[end]]], dtype=np.int64))
    every = np.unique(np.concatenate(edges), axis=0)
    return KnowledgeGraph(
        vocabulary.num_rows,
        tuple(relations),
        head=np.ascontiguousarray(every[:, 0]),
        relation=np.ascontiguousarray(every[:, 1]),
        tail=np.ascontiguousarray(every[:, 2]),
    )


def _pairs(sets: Ragged) -> tuple[IntArray, IntArray]:
    """Ordered pairs of different entities of one item, each pair once: (n,) and (n,)."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    for size in np.unique(sets.sizes).tolist():
        if size < 2:
            continue
        block = sets.take(np.flatnonzero(sets.sizes == size))[0]
        left, right = np.nonzero(~np.eye(size, dtype=np.bool_))
        pairs = np.stack([block[:, left].reshape(-1), block[:, right].reshape(-1)], axis=1)
        found.append(np.unique(pairs, axis=0))
    unique = np.unique(np.concatenate(found), axis=0)
    return unique[:, 0], unique[:, 1]
