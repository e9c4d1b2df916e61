"""Distances between sets against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.metrics.distributions import (
    frechet_distance,
    kernel_distance,
    laplacian_pyramid,
    patch_distance,
    precision_recall,
    sliced_wasserstein,
)


def exact(count: int, mean: Tensor, root: Tensor, seed: int = 0) -> Tensor:
    """Points whose own mean and covariance are exactly ``mean`` and ``root root^T``."""
    x = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False)
    return white.T @ root.T + mean


def test_frechet_distance_of_gaussians() -> None:
    a, b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    first = exact(40, torch.zeros(3).double(), a.diag())
    second = exact(50, torch.tensor([3.0, 0.0, 4.0]).double(), b.diag(), seed=1)
    # commuting covariances: |difference of means|^2 + sum of (a - b)^2
    assert frechet_distance(first, second) == pytest.approx(25 + 2, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_turned_gaussians() -> None:
    """Covariances that do not commute: tr sqrt(A B) from the eigenvalues of A B."""
    angle = torch.tensor(0.7).double()
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    root = torch.diag(torch.tensor([3.0, 1.0]).double())
    zero = torch.zeros(2).double()
    first, second = exact(30, zero, root), exact(30, zero, turn @ root, seed=1)
    a, b = root @ root.T, turn @ root @ root.T @ turn.T
    wanted = (a + b).trace() - 2 * torch.linalg.eigvals(a @ b).real.sqrt().sum()
    assert frechet_distance(first, second) == pytest.approx(wanted.item(), rel=1e-6)


def test_kernel_distance_is_the_unbiased_discrepancy() -> None:
    """Subsets of nine tenths scatter round the estimator over everything."""
    a, b = torch.randn(40, 4), torch.randn(40, 4) + 1

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / 4 + 1) ** 3

    def off(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    whole = off(kernel(a, a)) + off(kernel(b, b)) - 2 * kernel(a, b).mean()
    assert kernel_distance(a, b) == pytest.approx(whole.item(), rel=0.1)
    assert abs(kernel_distance(a, torch.randn(40, 4))) < 0.2 * whole
    assert kernel_distance(a, b) == kernel_distance(a, b)  # the same subsets every time


def test_kernel_distance_leaves_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    kernel_distance(torch.ones(8, 2), torch.zeros(8, 2))
    assert torch.equal(state, torch.get_rng_state())


def test_sliced_wasserstein_of_a_shift() -> None:
    a = torch.randn(300, 5, dtype=torch.float64)
    shift = torch.tensor([0.0, 3.0, 0.0, 0.0, 4.0]).double()
    mean = 5 * math.gamma(2.5) / (math.sqrt(math.pi) * math.gamma(3))  # E|<s, u>|, |s| = 5, D = 5
    # 4096 directions: the mean of |<s, u>| scatters by 1.5 %
    assert sliced_wasserstein(a, a + shift, directions=4096) == pytest.approx(mean, rel=0.05)
    assert sliced_wasserstein(a, a[torch.randperm(300)]) == pytest.approx(0, abs=1e-12)


def test_sliced_wasserstein_of_sets_of_different_sizes() -> None:
    a = torch.rand(200, 3, dtype=torch.float64)
    assert sliced_wasserstein(a, a.repeat(3, 1)) < 0.01  # the same distribution thrice


def test_precision_and_recall_by_hand() -> None:
    """On a line: the reals at 0, 1, 2, 3 reach one neighbour far; fakes at 1.5 and 9."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    fake = torch.tensor([[1.5], [9.0]])
    precision, recall = precision_recall(real, fake, neighbours=1)
    assert precision == 0.5
    assert recall == 1.0  # each fake's ball reaches 7.5 far: 9 - 7.5 = 1.5 and 1.5 - 7.5 < 0
    assert precision_recall(real, real + 100, neighbours=1) == (0.0, 0.0)
    assert precision_recall(real, real, neighbours=1) == (1.0, 1.0)


def test_an_outlier_does_not_make_nonsense_precise() -> None:
    real = torch.cat([torch.arange(10.0)[:, None], torch.tensor([[1000.0]])])  # its ball reaches 991 far
    fake = torch.full((5, 1), 500.0) + torch.arange(5)[:, None]
    assert precision_recall(real, fake, neighbours=1)[0] == 0


def test_the_pyramid_adds_up_to_the_picture() -> None:
    images = torch.rand(2, 3, 64, 64)
    levels = laplacian_pyramid(images)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    whole = levels[-1]
    for level in levels[-2::-1]:
        whole = torch.nn.functional.interpolate(whole, level.shape[-2:], mode="bilinear") + level
    torch.testing.assert_close(whole, images)


def test_patch_distance_orders_pictures_by_what_was_done_to_them() -> None:
    """The same patches are drawn of both, so a set is at distance 0 of itself; blur and noise are further."""

    def smooth() -> Tensor:
        return torch.nn.functional.interpolate(torch.randn(64, 3, 8, 8), (32, 32), mode="bilinear")

    def grainy() -> Tensor:
        return smooth() + 0.5 * torch.randn(64, 3, 32, 32)

    images = grainy()
    alike = patch_distance(images, grainy())
    assert patch_distance(images, images) == pytest.approx(0, abs=1e-6)
    assert alike < 0.5 * patch_distance(images, smooth())
    assert alike < 0.3 * patch_distance(images, torch.rand(64, 3, 32, 32) * 2 - 1)
