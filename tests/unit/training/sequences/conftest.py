"""Runs ask torch for deterministic kernels; tests elsewhere do not."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _put_back():
    yield
    torch.use_deterministic_algorithms(False)
