"""Losses of HIER (arXiv 2405.17132), each a positive number of nats to minimise unless said otherwise.

Pure functions of vectors. The paper gives their names; the forms are InfoNCE for exemplars and that of
CGI (Wei et al., NeurIPS 2022, "Contrastive graph structure learning via information bottleneck") for users.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def pairwise_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """BPR: mean of -log sigmoid(positive - negative) over (B,) scores."""
    return -functional.logsigmoid(positive - negative).mean()


def view_log_share(view: Tensor, other: Tensor, *, temperature: float) -> Tensor:
    """Mean over rows of log softmax of a row's own pair among the pairs with all rows, a scalar <= 0.

    Args:
        view: (B, d), compared by cosine.
        other: (B, d), row i of both of one thing.
        temperature: Divides the cosines.
    """
    left, right = functional.normalize(view, dim=1), functional.normalize(other, dim=1)
    return functional.log_softmax(left @ right.T / temperature, dim=1).diagonal().mean()


def exemplar_contrast(items: Tensor, exemplar_views: Tensor, *, temperature: float) -> Tensor:
    """Pull each item to its own exemplar view and from those of the batch's other items.

    Items of one exemplar are negatives of each other, so with K exemplars the loss stays near log(B / K).

    Args:
        items: (B, d), each item once.
        exemplar_views: (B, d).
        temperature: Divides the cosines.
    """
    return -view_log_share(items, exemplar_views, temperature=temperature)


def view_information(users: Tensor, intent_views: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE estimate of what the intent view still tells of the user, less log B; <= 0.

    The loss ADDS it: the views are pushed apart, the opposite of contrastive learning, while the prediction
    from the intent view keeps what tells clicks. At least -2 / temperature - log B.

    Args:
        users: (B, d), each user once.
        intent_views: (B, d).
        temperature: Divides the cosines.
    """
    return view_log_share(users, intent_views, temperature=temperature)
