"""Gradients through float16, on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.precision import scaled_gradients


def test_gradients_survive_half_precision() -> None:
    """A gradient of 1e-9 is zero in float16, and comes through all the same."""
    weight = torch.randn(5, 4)

    def function(x: Tensor) -> Tensor:
        return (x.half() @ weight.half().T).float().tanh()

    x = torch.randn(3, 4)
    gradients = []
    for run in (lambda x: function(x), lambda x: scaled_gradients(function, torch.float16, x)):
        leaf = x.clone().requires_grad_()
        (1e-9 * run(leaf)).sum().backward()
        gradients.append(leaf.grad)
    exact = x.clone().requires_grad_()
    (1e-9 * (exact @ weight.T).tanh()).sum().backward()
    assert gradients[0].abs().max() == 0
    torch.testing.assert_close(gradients[1] * 1e9, exact.grad * 1e9, atol=2e-2, rtol=2e-2)  # half has 11 bits
    with torch.no_grad():
        torch.testing.assert_close(scaled_gradients(function, torch.float16, x), function(x))
    zero = x.clone().requires_grad_()
    (0 * scaled_gradients(function, torch.float16, zero)).sum().backward()
    assert torch.equal(zero.grad, torch.zeros_like(x))


def test_second_derivatives_are_refused() -> None:
    """They would be zero without a word."""
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = scaled_gradients(lambda x: x**3, torch.float16, x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives need float32"):
        torch.autograd.grad(slope.square().sum(), x)


def test_of_several_inputs_those_have_gradients_that_want_them() -> None:
    x, y, z = torch.randn(3), torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    scaled_gradients(lambda x, y, z: x * y * z, torch.float16, x, y, z).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(y.grad, x * z.detach())
    torch.testing.assert_close(z.grad, x * y.detach())
