"""Averages over pieces of a grid: both ways of computing them against torch's and by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from effvit_train.models.resample import average, average_by_matrices, averaging


def test_pieces_by_hand():
    assert averaging(4, 2).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert torch.equal(averaging(5, 2), torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]) / 3)


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (7, 10), (2, 3)])
def test_the_matrices_do_what_adaptive_pooling_does_and_so_does_their_gradient(size):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    found, gradients = [], []
    for how in (F.adaptive_avg_pool2d, average_by_matrices, average):
        leaf = images.clone().requires_grad_()
        found.append(how(leaf, size))
        gradients.append(torch.autograd.grad(found[-1].square().sum(), leaf)[0])
    for values in (found, gradients):
        torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-7)  # the matrices are fp32
        assert torch.equal(values[2], values[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_its_gradient_is_deterministic_on_a_gpu():
    images = torch.randn(2, 3, 7, 10, device="cuda", requires_grad=True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        average(images, (3, 5)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
    assert images.grad.sum().item() == pytest.approx(2 * 3 * 3 * 5, rel=1e-4)
