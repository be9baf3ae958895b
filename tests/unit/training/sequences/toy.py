"""The worked sequence of SyNCRec's figure 2, and small logs."""

from __future__ import annotations

import numpy as np
import torch

from training.models.syncrec_net import SyncrecNet
from training.sequences.log import EventLog, log_of_arrays

DOMAIN_OF_LETTER = {"A": 0, "B": 1, "C": 2}
FIGURE = ("A1", "B2", "A3", "B4", "A5", "C6", "C7", "B8")


def figure_domains() -> np.ndarray:
    """(1, 8) int64."""
    return np.array([[DOMAIN_OF_LETTER[name[0]] for name in FIGURE]])


def random_log(seed: int = 0, *, num_users: int = 30, num_items: int = 12, longest: int = 15) -> EventLog:
    """Users of 4 to `longest` events over three domains, item i being of domain i % 3."""
    rng = np.random.default_rng(seed)
    length = rng.integers(4, longest + 1, num_users)
    item = rng.integers(0, num_items, length.sum())
    return log_of_arrays(
        user=np.repeat(np.arange(num_users), length),
        item=item,
        domain=item % 3,
        domains=("a", "b", "c"),
        num_valid=1,
        num_test=1,
    )


def small_net(
    *, num_rows: int = 20, num_domains: int = 3, gate: str = "prefix_mean", max_len: int = 8
) -> SyncrecNet:
    """K 3, j 2, without dropout."""
    torch.manual_seed(0)
    net = SyncrecNet(
        num_rows=num_rows,
        num_domains=num_domains,
        width=8,
        max_len=max_len,
        num_experts=3,
        num_cross_experts=2,
        num_layers=2,
        num_heads=2,
        dropout=0.0,
        gate=gate,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net
