"""Where an event of a mixed sequence stands in the sequence of its domain.

Two alignments are needed. By target: the mixed and the single view predict the same event, from different
positions, so that their losses can be compared. By input: both views have read the same event.

Positions count from 0 for the start mark: after it, the k-th event read stands at position k + 1, and the
position before an event predicts it. Every event of a window is a target; every one but the last is an input.

Invariant: each target of the mixed sequence is a target of exactly one single sequence, and each input of a
single sequence is the same event in the mixed one.

Letters: B windows, n events in a window, G groups, a group being the events of one domain in one window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Alignment:
    """The events of B windows, sorted by group and then by time.

    Attributes:
        window, place: (P,) of each event: its window, and its place there from 0; the place is also the mixed
            position that predicts it.
        group: (P,) its group.
        rank: (P,) its place in its group; also the single position that predicts it.
        is_input: (P,) bool, whether both views read it: then at mixed position place + 1 and at single
            position rank + 1.
        group_window, group_domain: (G,).
        group_inputs: (G,) events that the single view reads.
    """

    window: Ints
    place: Ints
    group: Ints
    rank: Ints
    is_input: NDArray[np.bool_]
    group_window: Ints
    group_domain: Ints
    group_inputs: Ints


def align(domains: Ints, length: Ints, *, num_domains: int) -> Alignment:
    """Align windows of events.

    Args:
        domains: (B, n) domain of each event, anything after a window's end.
        length: (B,) events of each window, 1 to n.
        num_domains: D.
    """
    window, place = np.nonzero(np.arange(domains.shape[1]) < length[:, None])
    key = window * num_domains + domains[window, place]
    order = np.argsort(key, kind="stable")
    window, place, key = window[order], place[order], key[order]
    keys, first, group = np.unique(key, return_index=True, return_inverse=True)
    is_input = place < length[window] - 1
    return Alignment(
        window=window,
        place=place,
        group=group,
        rank=np.arange(len(key)) - first[group],
        is_input=is_input,
        group_window=keys // num_domains,
        group_domain=keys % num_domains,
        group_inputs=np.bincount(group[is_input], minlength=len(keys)),
    )
