"""Distances between two sets of feature vectors or pictures.

``real`` and ``fake`` are (n, D) and (m, D) throughout. FID and KID are torchmetrics', which gets the features
instead of the pictures, so that any feature network serves and is evaluated once.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


class _Given(torch.nn.Module):
    """A feature network whose pictures are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """``|mu_r - mu_f|^2 + tr(C_r + C_f - 2 (C_r C_f)^1/2)`` (Heusel et al. 2017)."""
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]))
    metric.update(real.double().cpu(), real=True)
    metric.update(fake.double().cpu(), real=False)
    distance = metric.compute().item()
    return max(distance, 0.0)  # the square root's rounding can leave -1e-12; nan stays nan


def kernel_distance(real: Tensor, fake: Tensor, *, subsets: int = 50, most: int = 1000) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018).

    The mean over random subsets of at most ``most``, and at most nine tenths of the smaller set; about 0, or
    just below, for equal distributions. The same subsets every time.
    """
    size = min(most, max(2, int(0.9 * min(len(real), len(fake)))))
    with warnings.catch_warnings():  # that it keeps all features is what we are here for
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(feature=_Given(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real.double().cpu(), real=True)
    metric.update(fake.double().cpu(), real=False)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return metric.compute()[0].item()


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Precision and recall of Kynkaanniemi et al. 2019.

    A set's manifold is the union of balls round its points that reach to their k-th nearest neighbour.
    Precision: share of fakes in the manifold of the reals; recall: share of reals in that of the fakes. Balls
    larger than the median one are left out, as the paper does for its realism: the ball of a single outlier
    can hold a whole set of nonsense.
    """

    def covered(points: Tensor, others: Tensor) -> float:
        k = min(neighbours, len(others) - 1)
        # the nearest of a set's own distances is that to itself
        radius = torch.cdist(others, others).kthvalue(k + 1, dim=1).values
        radius = torch.where(radius <= radius.median(), radius, -1.0)
        return (torch.cdist(points, others) <= radius).any(1).double().mean().item()

    real, fake = real.double().cpu(), fake.double().cpu()
    return covered(fake, real), covered(real, fake)


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 256, seed: int = 0) -> float:
    """Mean over random unit directions of the 1-Wasserstein distance of the projections (Rabin et al. 2011).

    Sets of different sizes are compared at as many quantiles as the smaller one has. Two sets that differ by
    a shift s are E|<s, u>| = |s| * Gamma(D/2) / (sqrt(pi) Gamma((D + 1)/2)) apart.
    """
    source = torch.Generator().manual_seed(seed)
    u = F.normalize(torch.randn(a.shape[1], directions, generator=source, dtype=torch.float64), dim=0).to(a)
    count = min(len(a), len(b))
    levels = (torch.arange(count, dtype=a.dtype, device=a.device) + 0.5) / count
    first, second = (_quantiles((points @ u).sort(dim=0).values, levels) for points in (a, b))
    return (first - second).abs().mean().item()


def _quantiles(ordered: Tensor, levels: Tensor) -> Tensor:
    """Of sorted columns (n, K) at (q,) levels in [0, 1] -> (q, K)."""
    return ordered[(levels * len(ordered)).long().clamp(max=len(ordered) - 1)]


def patch_distance(real: Tensor, fake: Tensor, *, patches: int = 16, seed: int = 0) -> float:
    """Sliced Wasserstein distance of pictures (n, 3, H, H) in [-1, 1], after Karras et al. 2018.

    Of each level of the Laplacian pyramid down to side 16, descriptors of random 7 x 7 patches, normalised
    per colour channel by the reals' mean and deviation; the mean over the levels, times 1000. No network is
    needed.
    """
    distances = []
    for level, (a, b) in enumerate(zip(laplacian_pyramid(real), laplacian_pyramid(fake), strict=True)):
        mean, deviation = a.mean((0, 2, 3), keepdim=True), a.std((0, 2, 3), keepdim=True)
        first, second = (_patches((x - mean) / deviation, patches, seed + level) / 7 / 3**0.5 for x in (a, b))
        distances.append(sliced_wasserstein(first, second, seed=seed))
    return 1000 * sum(distances) / len(distances)


def laplacian_pyramid(images: Tensor, smallest: int = 16) -> list[Tensor]:
    """Differences between each level and the next, enlarged; the last level is the picture itself."""
    levels = []
    while images.shape[-1] >= 2 * smallest:
        smaller = F.avg_pool2d(images, 2)
        levels.append(images - F.interpolate(smaller, images.shape[-2:], mode="bilinear"))
        images = smaller
    return [*levels, images]


def _patches(images: Tensor, count: int, seed: int, side: int = 7) -> Tensor:
    """``count`` random patches of each picture (n, C, H, H) as vectors (n * count, C side^2)."""
    source = torch.Generator().manual_seed(seed)
    side = min(side, images.shape[-1])
    corners = torch.randint(images.shape[-1] - side + 1, (2, len(images), count), generator=source)
    steps = torch.arange(side)
    rows, columns = (corner[..., None] + steps for corner in corners.to(images.device))  # (n, count, side)
    which = torch.arange(len(images))[:, None, None, None]
    found = images.movedim(1, -1)[which, rows[..., :, None], columns[..., None, :]]  # (n, count, s, s, C)
    return found.flatten(0, 1).flatten(1)
