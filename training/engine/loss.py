"""The loss of a training step, in nats.

Reads what a model gives of B rows. Invariant: rows count by their weight, heads of a row by theirs; weights
that are all 0 give loss 0.
"""

from torch import Tensor
from torch.nn import functional

from training.models.base import ModelOutput


def training_loss(output: ModelOutput, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over rows of the BCE of a row's logit, or of its heads' weighted mean BCE, in nats.

    Args:
        output: Of B rows.
        labels: (B,) float32, 0 or 1.
        weights: (B,) float32, not negative; all 0 gives loss 0.
    """
    if output.heads is None:
        return weighted_bce(output.logits.float(), labels, weights)
    logits = output.heads.logits.float()
    losses = functional.binary_cross_entropy_with_logits(
        logits, labels.unsqueeze(1).expand_as(logits), reduction="none"
    )
    by_row = (losses * output.heads.weights).sum(dim=1)
    return (by_row * weights).sum() / weights.sum().clamp_min(1e-12)


def weighted_bce(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean binary cross-entropy, in nats.

    Args:
        logits: (B,) float32.
        labels: (B,) float32, 0 or 1.
        weights: (B,) float32, not negative; all 0 gives loss 0.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp_min(1e-12)
