"""Optimiser, running average and the guard against non-finite gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnlib.errors import UserError
from training.updates import FiniteGuard, Updater, frozen, gradients, update_average


def test_lazy_regularisation_adjusts_adam():
    updater = Updater("g", [nn.Parameter(torch.ones(1))], FiniteGuard(0), lr=0.002, lazy_every=16)
    group = updater.optimiser.param_groups[0]
    assert group["lr"] == pytest.approx(0.002 * 16 / 17)
    assert group["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))


def test_gradients_lie_as_their_parameters():
    weight, unused = torch.nn.Parameter(torch.randn(2, 3)), torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.full((2, 3), 100.0)  # forgotten, not added to
    other = torch.randn(3, 2)

    def loss():
        return (weight.t() * other).sum()

    assert torch.autograd.grad(loss(), weight)[0].stride() != weight.stride()  # or this shows nothing
    found, nothing = gradients(loss(), [weight, unused])
    assert torch.equal(found, other.t()) and found.stride() == weight.stride()
    assert nothing is None


def test_step_clears_gradients():
    parameter = nn.Parameter(torch.ones(2))
    updater = Updater("g", [parameter], FiniteGuard(0), lr=0.1)
    parameter.sum().backward()
    updater.apply()
    assert parameter.grad is None
    torch.testing.assert_close(parameter.detach(), torch.full((2,), 0.9))  # Adam's first step is lr * sign


def test_step_with_a_non_finite_gradient_is_left_out_and_counted():
    good, bad = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    guard = FiniteGuard(limit=1)
    updater = Updater("generator", [good, bad], guard, lr=0.1)

    def attempt() -> None:
        good.grad, bad.grad = torch.ones(2), torch.tensor([1.0, float("nan")])
        updater.apply()

    attempt()
    assert guard.count == 1
    assert good.tolist() == [1, 1]
    assert updater.optimiser.state[good]["step"] == 0
    assert good.grad is None
    with pytest.raises(UserError, match="generator were not finite"):
        attempt()


def test_average_follows_parameters_and_copies_buffers():
    current, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(current.weight, 3.0)
    current.running_mean.fill_(5)
    update_average(average, current, decay=0.75)
    assert average.weight.tolist() == pytest.approx([1.5, 1.5])
    assert average.running_mean.tolist() == [5, 5]


def test_frozen_lets_gradients_through():
    layer, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with frozen(layer):
        layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert layer.weight.requires_grad


def test_a_resumed_optimiser_has_the_rate_of_its_configuration():
    parameter = torch.nn.Parameter(torch.ones(3))
    before = Updater("x", [parameter], FiniteGuard(0), lr=0.1)
    parameter.grad = torch.ones(3)
    before.apply()
    after = Updater("x", [parameter], FiniteGuard(0), lr=0.01, betas=(0.5, 0.9))
    after.load_state_dict(before.state_dict())
    (group,) = after.optimiser.param_groups
    assert group["lr"] == 0.01 and group["betas"] == (0.5, 0.9)
    assert after.optimiser.state[parameter]["step"] == 1
