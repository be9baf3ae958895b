"""Small AREAD models."""

from __future__ import annotations

import numpy as np
import torch

from tests.support.models import MODELS, trained_model
from tests.support.schemas import full_schema
from training.models.aread import Aread
from training.models.base import Sides
from training.models.layers import ExpertStack
from training.models.mask import PyramidMask, PyramidShape, random_mask
from training.models.pyramid import Pyramid
from training.models.pyramid_gates import DomainGates

SCHEMA = full_schema()
AREADS = [name for name in MODELS if name.startswith("aread")]
TOY = PyramidShape((2, 3, 2))


def aread(name: str = "aread", *, seed: int = 0, masked: bool = True) -> Aread:
    """A model in evaluation mode, domains 0 to D - 1 with random masks."""
    ranker = trained_model(name, SCHEMA, seed=seed).ranker
    assert isinstance(ranker, Aread)
    if masked:
        rng = np.random.default_rng(seed)
        densities = np.linspace(0.15, 0.8, SCHEMA.num_domains)
        ranker.set_masks({d: random_mask(ranker.shape, float(q), rng) for d, q in enumerate(densities)})
    return ranker


def random_sides(model: Aread, num_rows: int, *, seed: int = 0) -> Sides:
    """Dense inputs as wide as the model's, one request per row, all domains."""
    torch.manual_seed(seed)
    products = model.cross.products
    return Sides(
        torch.randn(num_rows, products.request.in_features),
        torch.randn(num_rows, products.row.in_features),
        None,
        torch.arange(num_rows) % (SCHEMA.num_domains + 1),
    )


def toy_mask(first: list, second: list) -> PyramidMask:
    """A mask of the toy pyramid from its inner edges, tidied."""
    ones = np.ones
    return PyramidMask.from_arrays(
        TOY, [ones((1, 2), bool), np.array(first, bool), np.array(second, bool), ones((2, 1), bool)]
    ).validate()


def toy() -> tuple[Pyramid, DomainGates]:
    """Scalar experts and gates of the toy pyramid; every expert is relu(w t + b)."""
    pyramid = Pyramid(
        input_width=1,
        num_experts=(2, 3, 2),
        widths=((1,), (1,), (1,)),
        dropout=0.0,
        batch_norm=False,
    ).eval()
    lines = [[(2, 0), (1, -1)], [(1, 0), (0.5, 1), (-1, 3)], [(1, 0), (1, 0)]]
    gates = DomainGates(num_domains=3, shape=TOY, num_base_experts=0, dim=2)
    columns = [[[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]], [[0.2, 0.5, 0.3], [0.1, 0.6, 0.3]]]
    with torch.no_grad():
        for level, experts in zip(pyramid.levels, lines, strict=True):
            assert isinstance(level, ExpertStack)
            level.first.weight.copy_(torch.tensor([[[w]] for w, _ in experts]))
            level.first.bias.copy_(torch.tensor([[b] for _, b in experts]))
        pyramid.head.copy_(torch.tensor([[1.0], [0.5]]))
        for layer, wanted in zip(gates.layers, columns, strict=True):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(wanted).log().reshape(-1))
    return pyramid, gates
