"""Samples three axis-aligned feature planes at points in space.

A point is projected on each plane; the plane is read there by bilinear interpolation (pixel centres at
(i + 0.5) / size, zeros outside), and the three results are averaged. Right to second order in planes and
points, as the eikonal loss needs.

The reference writes the interpolation as a product with a sparse matrix, one row per point, whose entries are
the corners' weights. Three linear maps are then closed under differentiation, so each one's backward is the
other two:

    gather   y_b = sum_k w_bk T[i_bk]          T table (R, C), i and w (B, K)
    scatter  T_r = sum_{b,k: i_bk = r} w_bk y_b
    dot      d_bk = T[i_bk] . y_b
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

# Axes of a point that are a plane's horizontal (W) and vertical (H) coordinate.
PROJECTIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "published": ((0, 1), (0, 2), (2, 0)),  # the published weights depend on x-z being read twice
    "orthogonal": ((0, 1), (0, 2), (1, 2)),
}


def triplane_sample(
    planes: Tensor,
    points: Tensor,
    *,
    projection: str,
    box_warp: float,
    reduce: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """planes (N, 3, C, H, W) at points (N, M, 3) -> features (N, M, C), or (N, 3, M, C) with
    ``reduce='none'``.

    Points are in world units; the planes cover a cube of side ``box_warp`` centred at the origin.
    ``projection`` is 'orthogonal' (x-y, x-z, y-z) or 'published' (x-y, x-z, z-x). ``impl`` is 'auto',
    'reference' or 'native'. Fastest when each plane is channels-last in memory.
    """
    return _reference(planes, points, PROJECTIONS[projection], box_warp, reduce == "mean")


def _reference(
    planes: Tensor, points: Tensor, axes: tuple[tuple[int, int], ...], box_warp: float, mean: bool
) -> Tensor:
    """The operation in PyTorch."""
    batch, count, channels, height, width = planes.shape
    num_points = points.shape[1]
    table = planes.permute(0, 1, 3, 4, 2).reshape(batch * count * height * width, channels)
    index, weight = _corners(points, axes, box_warp, height, width)  # (N, M, 3, 4) each
    if mean:
        rows = batch * num_points
        return gather(table, index.view(rows, -1), weight.reshape(rows, -1) / count).view(
            batch, num_points, channels
        )
    rows = batch * num_points * count
    features = gather(table, index.view(rows, -1), weight.reshape(rows, -1))
    return features.view(batch, num_points, count, channels).transpose(1, 2)


def _corners(
    points: Tensor, axes: tuple[tuple[int, int], ...], box_warp: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Rows of the table and weights of the four corners on every plane: (N, M, 3, 4), int64 and points'
    dtype."""
    batch, count = len(points), len(axes)
    size = points.new_tensor((width, height))
    flat = points[..., [axis for pair in axes for axis in pair]].unflatten(-1, (count, 2))
    pixel = (
        flat * (size / box_warp) + (size - 1) / 2
    )  # (N, M, 3, 2): x, y in pixels, 0 the first pixel's centre
    low = pixel.detach().floor()
    upper = pixel - low  # weight of the corner at low + 1
    corner = torch.stack((low, low + 1), dim=-1)  # (N, M, 3, 2, 2): axis, corner
    inside = (corner >= 0) & (corner < size[:, None])
    weight = torch.stack((1 - upper, upper), dim=-1) * inside
    limit = (size - 1).long()[:, None]
    cell = torch.minimum(corner.clamp_min(0).long(), limit)
    plane = torch.arange(batch * count, device=points.device).view(batch, 1, count, 1, 1) * (height * width)
    index = plane + cell[..., 1, :, None] * width + cell[..., 0, None, :]  # (N, M, 3, y, x)
    weight = weight[..., 1, :, None] * weight[..., 0, None, :]
    return index.flatten(-2), weight.flatten(-2)


class _Gather(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, weight)
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, index, weight = ctx.saved_tensors
        to_table, _, to_weight = ctx.needs_input_grad
        return (
            _Scatter.apply(grad, index, weight, len(table)) if to_table else None,
            None,
            _Dot.apply(table, index, grad) if to_weight else None,
        )


class _Scatter(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, index: Tensor, weight: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(values, index, weight)
        table = values.new_zeros(rows, values.shape[1])
        return table.index_add_(0, index.flatten(), (weight[:, :, None] * values[:, None]).flatten(0, 1))

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        values, index, weight = ctx.saved_tensors
        to_values, _, to_weight, _ = ctx.needs_input_grad
        return (
            _Gather.apply(grad, index, weight) if to_values else None,
            None,
            _Dot.apply(grad, index, values) if to_weight else None,
            None,
        )


class _Dot(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, index: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, values)
        return torch.einsum("bkc,bc->bk", table[index], values)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, index, values = ctx.saved_tensors
        to_table, _, to_values = ctx.needs_input_grad
        return (
            _Scatter.apply(values, index, grad, len(table)) if to_table else None,
            None,
            _Gather.apply(table, index, grad) if to_values else None,
        )


def gather(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """sum_k weight_bk table[index_bk]: table (R, C), index and weight (B, K) -> (B, C)."""
    return _Gather.apply(table, index, weight)
