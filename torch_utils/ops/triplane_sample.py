"""Samples three axis-aligned feature planes at points in space.

A point is projected on each plane; the plane is read there by bilinear interpolation (pixel centres at
(i + 0.5) / size, zeros outside), and the three results are averaged. Right to second order in planes and
points, as the eikonal loss needs.

The interpolation is a product with a sparse matrix, one row per point, whose entries are the weights of the
corners around it. Three linear maps are then closed under differentiation: each one's backward is the others.

    gather   y_b = sum_k w_bk T[i_bk]              T table (R, C), i and w (B, K), y (B, C)
    scatter  T_r = sum over i_bk = r of w_bk y_b
    dot      d_bk = T[i_bk] . y_b

The corners of a cell lie at fixed distances (1 and the pitch of the table), so only the first is stored.
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
    """planes (N, 3, C, H, W) at points (N, M, 3) -> features (N, M, C), their mean over the planes.

    Points are in world units; the planes cover a cube of side ``box_warp`` centred at the origin.
    ``projection`` is 'orthogonal' (x-y, x-z, y-z) or 'published' (x-y, x-z, z-x). ``reduce='none'`` leaves
    out the averaging: (N, 3, M, C). ``impl`` is 'auto', 'reference' or 'native'.
    """
    height, width = planes.shape[-2:]
    # A ring of zeros around each plane stands for all that is outside.
    table = F.pad(planes.permute(0, 1, 3, 4, 2), (0, 0, 1, 1, 1, 1)).flatten(0, 3)
    cells, weight = _corners(points, PROJECTIONS[projection], box_warp, height, width)
    cells, weight, pitch = cells.flatten(0, 1), weight.flatten(0, 1), width + 2
    if reduce == "none":  # a point on one plane is a row of 4 corners, instead of 12
        each = gather(table, cells.view(-1, 1), weight.reshape(-1, 1, 4), pitch)
        return each.view(*points.shape[:2], 3, -1).transpose(1, 2)
    return gather(table, cells, weight / 3, pitch).unflatten(0, points.shape[:2])


def _corners(
    points: Tensor, axes: tuple[tuple[int, int], ...], box_warp: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """First corner's row in the table of padded planes, (N, M, 3) int32, and the weights of all four,
    (N, M, 3, 4) in the order of :func:`_rows`, twice differentiable by the points."""
    # Pixel ((p / (box / 2) + 1) size - 1) / 2, + 1 for the ring; held inside the ring, where the value is
    # zero.
    along = points.unbind(-1)
    x = torch.stack([along[horizontal] for horizontal, _ in axes], dim=-1) * (width / box_warp)
    y = torch.stack([along[vertical] for _, vertical in axes], dim=-1) * (height / box_warp)
    x = (x + (width + 1) / 2).clamp(0, width + 1)
    y = (y + (height + 1) / 2).clamp(0, height + 1)
    with torch.no_grad():
        # NaN points must give NaN features, not a row out of range: hence nan_to_num.
        left = x.floor().clamp_max(width).nan_to_num()
        top = y.floor().clamp_max(height).nan_to_num()
        plane = torch.arange(len(points) * len(axes), device=points.device, dtype=torch.int32)
        plane = plane.view(-1, 1, len(axes))
        cells = (plane * (height + 2) + top.int()) * (width + 2) + left.int()
    right, below = x - left, y - top
    both = right * below
    # (1 - right) (1 - below), right (1 - below), (1 - right) below, right below
    return cells, torch.stack((1 - right - below + both, right - both, below - both, both), dim=-1)


def gather(table: Tensor, cells: Tensor, weight: Tensor, pitch: int) -> Tensor:
    """y_b = sum_pk weight_bpk table[corner k of cell_bp].

    table (R, C), cells (B, P) int32, weight (B, P, 4) -> (B, C). ``pitch``: rows of the table from a pixel to
    the one below it.
    """
    y = _GatherByTable.apply(table, cells, (weight,), pitch)
    return _GatherByWeight.apply(y, table, cells, weight, pitch) if weight.requires_grad else y


def scatter(values: Tensor, cells: Tensor, weight: Tensor, pitch: int, rows: int) -> Tensor:
    """The transpose of :func:`gather`: values (B, C) -> table (rows, C)."""
    return _Scatter.apply(values, cells, weight, pitch, rows)


def dot(table: Tensor, cells: Tensor, values: Tensor, pitch: int) -> Tensor:
    """d_bpk = table[corner k of cell_bp] . values_b: values (B, C) -> (B, P, 4)."""
    return _Dot.apply(table, cells, values, pitch)


class _GatherByTable(Function):
    """gather, with its derivative by the table.

    The derivative by the weights belongs to a node of its own, because autograd asks a node for all its
    gradients or for none: the eikonal loss wants the points' gradient, and would pay for the table's as well.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, cells: Tensor, weight: tuple[Tensor], pitch: int) -> Tensor:
        """``weight`` comes in a tuple, where autograd does not look: it must not be an edge of this node,
        yet keep its own graph for the second derivative."""
        ctx.save_for_backward(cells)
        (ctx.weight,) = weight
        ctx.pitch, ctx.rows = pitch, len(table)
        return _gather_reference(table, cells, ctx.weight.detach(), pitch)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cells,) = ctx.saved_tensors
        return scatter(grad, cells, ctx.weight, ctx.pitch, ctx.rows), None, None, None


class _GatherByWeight(Function):
    """Passes gather's result on and adds its derivative by the weights."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, y: Tensor, table: Tensor, cells: Tensor, weight: Tensor, pitch: int
    ) -> Tensor:
        ctx.save_for_backward(table, cells)
        ctx.pitch = pitch
        return y.view_as(y)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, cells = ctx.saved_tensors
        return grad, None, None, dot(table, cells, grad, ctx.pitch), None


class _Scatter(Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, values: Tensor, cells: Tensor, weight: Tensor, pitch: int, rows: int
    ) -> Tensor:
        ctx.save_for_backward(values, cells, weight)
        ctx.pitch = pitch
        return _scatter_reference(values, cells, weight, pitch, rows)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, cells, weight = ctx.saved_tensors
        by_values, _, by_weight, _, _ = ctx.needs_input_grad
        return (
            gather(grad, cells, weight, ctx.pitch) if by_values else None,
            None,
            dot(grad, cells, values, ctx.pitch) if by_weight else None,
            None,
            None,
        )


class _Dot(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, cells: Tensor, values: Tensor, pitch: int) -> Tensor:
        ctx.save_for_backward(table, cells, values)
        ctx.pitch = pitch
        return _dot_reference(table, cells, values, pitch)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, cells, values = ctx.saved_tensors
        by_table, _, by_values, _ = ctx.needs_input_grad
        return (
            scatter(values, cells, grad, ctx.pitch, len(table)) if by_table else None,
            None,
            gather(table, cells, grad, ctx.pitch) if by_values else None,
            None,
        )


def _rows(cells: Tensor, pitch: int) -> Tensor:
    """Rows (B, 4 P) of all corners: itself, right, below, below right."""
    steps = torch.tensor((0, 1, pitch, pitch + 1), device=cells.device, dtype=cells.dtype)
    return (cells[..., None] + steps).flatten(1)


def _gather_reference(table: Tensor, cells: Tensor, weight: Tensor, pitch: int) -> Tensor:
    return F.embedding_bag(_rows(cells, pitch), table, mode="sum", per_sample_weights=weight.flatten(1))


def _scatter_reference(values: Tensor, cells: Tensor, weight: Tensor, pitch: int, rows: int) -> Tensor:
    # Sorted by cell, each corner is a gather: row r sums the values of the points whose cell is r. That is
    # three times as fast as adding at random places, and its result does not depend on the order of threads.
    ordered, order = cells.flatten().sort()
    every_row = torch.arange(rows + 1, device=cells.device, dtype=torch.int32)
    first = torch.searchsorted(ordered, every_row, out_int32=True)
    point = torch.div(order, cells.shape[1], rounding_mode="floor").int()
    corner_weights = weight.reshape(-1, 4).index_select(0, order).t().contiguous()
    table = torch.zeros(rows, values.shape[1], dtype=values.dtype, device=values.device)
    for step, corner in zip((0, 1, pitch, pitch + 1), corner_weights, strict=True):
        at_cell = F.embedding_bag(
            point, values, first, mode="sum", per_sample_weights=corner, include_last_offset=True
        )
        table[step:] += at_cell[: rows - step]
    return table


def _dot_reference(table: Tensor, cells: Tensor, values: Tensor, pitch: int) -> Tensor:
    # What embedding_bag's own backward calls for the weights: it never stores the (B, 4 P, C) rows.
    rows = _rows(cells, pitch)
    bags = torch.arange(len(rows), device=rows.device, dtype=rows.dtype)
    offsets, bag_of = bags * rows.shape[1], bags.repeat_interleave(rows.shape[1])
    mode_sum, no_padding = 0, -1
    found = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        values.contiguous(), table, rows.flatten(), offsets, bag_of, mode_sum, no_padding
    )
    return found.view(*cells.shape, 4)
