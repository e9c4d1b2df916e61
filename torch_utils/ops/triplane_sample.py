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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from torch_utils import extension
from torch_utils.ops.types import of_one_type

# Axes of a point that are a plane's horizontal (W) and vertical (H) coordinate.
PROJECTIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "published": ((0, 1), (0, 2), (2, 0)),  # the published weights depend on x-z being read twice
    "orthogonal": ((0, 1), (0, 2), (1, 2)),
}

# Half precision is computed in float32.
NATIVE_TYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
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
    (features,) = triplane_sample_sets(
        [planes], points, projection=projection, box_warp=box_warp, reduce=reduce, impl=impl
    )
    return features


def triplane_sample_sets(
    sets: Sequence[Tensor],
    points: Tensor,
    *,
    projection: str,
    box_warp: float,
    reduce: str = "mean",
    impl: str = "auto",
) -> list[Tensor]:
    """:func:`triplane_sample` of several sets of planes at the same points, which are projected only once
    where gradients are wanted.

    All have one H and W; of several types the widest counts. The native operation reads sets that
    :func:`channels_last` made where they lie, and copies others.
    """
    height, width = sets[0].shape[-2:]
    if any(planes.shape[-2:] != (height, width) for planes in sets):
        raise ValueError(f"sets of planes have one size; got {[tuple(each.shape[-2:]) for each in sets]}")
    if reduce not in ("mean", "none"):
        raise ValueError(f"reduce is '{reduce}'; it must be 'mean' or 'none'")
    axes = PROJECTIONS[projection]
    scale = 1 / len(axes) if reduce == "mean" else 1.0
    points, *sets = of_one_type(points, *sets)
    dtype = points.dtype
    fits = dtype in NATIVE_TYPES.get(points.device.type, ())
    values = points.shape[:2].numel() * sum(planes.shape[2] for planes in sets)
    native = fits and min(height, width) >= 2
    native = native and extension.use_native("triplane_sample", impl, points.device, values)
    if native:
        wide = torch.promote_types(dtype, torch.float32)
        points, sets = points.to(wide), [each.to(wide) for each in sets]
        projected = [axis for pair in axes for axis in pair], box_warp, height, width, scale
        if reduce == "mean" and points.is_cpu and not _differentiated(points, *sets):
            found = [_native_sample(_native_table(planes), points, *projected) for planes in sets]
            return [each.view(*points.shape[:2], each.shape[-1]) for each in found]
        cells, weight = _native_corners(points, *projected)
    else:
        cells, weight = _corners(points, axes, box_warp, height, width)
        cells, weight = cells.flatten(0, 1), weight.flatten(0, 1) * scale
    layout = _Layout(pitch=width if native else width + 2, groups=max(1, len(points)), native=native)
    if reduce == "none":  # a point on one plane is a row of 4 corners, instead of 12
        cells, weight = cells.view(-1, 1), weight.reshape(-1, 1, 4)
        layout = _Layout(layout.pitch, 1, native)
    table = _native_table if native else _table
    found = [gather(table(planes), cells, weight, layout).to(dtype) for planes in sets]
    if reduce == "none":
        return [each.view(*points.shape[:2], len(axes), each.shape[-1]).transpose(1, 2) for each in found]
    return [each.view(*points.shape[:2], each.shape[-1]) for each in found]


def channels_last(planes: Tensor) -> Tensor:
    """The same planes (N, 3, C, H, W), the channels of a pixel side by side in memory; a copy if need be."""
    rows = planes.permute(0, 1, 3, 4, 2)
    return planes if rows.is_contiguous() else rows.contiguous().permute(0, 1, 4, 2, 3)


def _differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def _table(planes: Tensor) -> Tensor:
    """All pixels of all planes, (R, C). A ring of zeros around each plane stands for all that is outside."""
    return F.pad(planes.permute(0, 1, 3, 4, 2), (0, 0, 1, 1, 1, 1)).flatten(0, 3)


def _native_table(planes: Tensor) -> Tensor:
    """The same without the ring; the planes' own memory if the channels of a pixel lie side by side."""
    rows = planes.permute(0, 1, 3, 4, 2)
    if planes.is_cpu and planes.is_contiguous() and not rows.is_contiguous():
        return _native_turn(planes.flatten(0, 1).flatten(2)).flatten(0, 1)
    return rows.flatten(0, 3)


@dataclass(frozen=True)
class _Layout:
    """How cells lie in a table, and which implementation reads it."""

    pitch: int  # rows from a pixel to the one below it
    groups: int  # points come in so many equal groups, each with an equal share of the table to itself
    native: bool


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


def gather(table: Tensor, cells: Tensor, weight: Tensor, layout: _Layout) -> Tensor:
    """y_b = sum_pk weight_bpk table[corner k of cell_bp].

    table (R, C), cells (B, P) int32, weight (B, P, 4) -> (B, C).
    """
    if not weight.requires_grad:
        return _gather(table, cells, weight, layout)
    y = _GatherByTable.apply(table, cells, (weight,), layout)
    return _GatherByWeight.apply(y, table, cells, weight, layout)


def scatter(values: Tensor, cells: Tensor, weight: Tensor, layout: _Layout, rows: int) -> Tensor:
    """The transpose of :func:`gather`: values (B, C) -> table (rows, C)."""
    if layout.native:
        return _native_scatter(values, cells, weight, layout.pitch, layout.groups, rows)
    return _Scatter.apply(values, cells, weight, layout, rows)


def dot(table: Tensor, cells: Tensor, values: Tensor, layout: _Layout) -> Tensor:
    """d_bpk = table[corner k of cell_bp] . values_b: values (B, C) -> (B, P, 4)."""
    if layout.native:
        return _native_dot(table, cells, values, layout.pitch, layout.groups)
    return _Dot.apply(table, cells, values, layout)


def _gather(table: Tensor, cells: Tensor, weight: Tensor, layout: _Layout) -> Tensor:
    if layout.native:
        return _native_gather(table, cells, weight, layout.pitch, layout.groups)
    return _GatherByTable.apply(table, cells, (weight,), layout)


class _GatherByTable(Function):
    """gather, with its derivative by the table.

    The derivative by the weights belongs to a node of its own, because autograd asks a node for all its
    gradients or for none: the eikonal loss wants the points' gradient, and would pay for the table's as well.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, table: Tensor, cells: Tensor, weight: tuple[Tensor], layout: _Layout
    ) -> Tensor:
        """``weight`` comes in a tuple, where autograd does not look: it must not be an edge of this node,
        yet keep its own graph for the second derivative."""
        ctx.save_for_backward(cells)
        (ctx.weight,) = weight
        ctx.layout, ctx.rows = layout, len(table)
        if layout.native:
            return _gather(table, cells, ctx.weight.detach(), layout)
        return _gather_reference(table, cells, ctx.weight.detach(), layout.pitch)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cells,) = ctx.saved_tensors
        return scatter(grad, cells, ctx.weight, ctx.layout, ctx.rows), None, None, None


class _GatherByWeight(Function):
    """Passes gather's result on and adds its derivative by the weights."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, y: Tensor, table: Tensor, cells: Tensor, weight: Tensor, layout: _Layout
    ) -> Tensor:
        ctx.save_for_backward(table, cells)
        ctx.layout = layout
        return y.view_as(y)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, cells = ctx.saved_tensors
        return grad, None, None, dot(table, cells, grad, ctx.layout), None


class _Scatter(Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, values: Tensor, cells: Tensor, weight: Tensor, layout: _Layout, rows: int
    ) -> Tensor:
        ctx.save_for_backward(values, cells, weight)
        ctx.layout = layout
        return _scatter_reference(values, cells, weight, layout.pitch, rows)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, cells, weight = ctx.saved_tensors
        by_values, _, by_weight, _, _ = ctx.needs_input_grad
        return (
            gather(grad, cells, weight, ctx.layout) if by_values else None,
            None,
            dot(grad, cells, values, ctx.layout) if by_weight else None,
            None,
            None,
        )


class _Dot(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, cells: Tensor, values: Tensor, layout: _Layout) -> Tensor:
        ctx.save_for_backward(table, cells, values)
        ctx.layout = layout
        return _dot_reference(table, cells, values, layout.pitch)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, cells, values = ctx.saved_tensors
        by_table, _, by_values, _ = ctx.needs_input_grad
        return (
            scatter(values, cells, grad, ctx.layout, len(table)) if by_table else None,
            None,
            gather(table, cells, grad, ctx.layout) if by_values else None,
            None,
        )


def _rows(cells: Tensor, pitch: int) -> Tensor:
    """Rows (B, 4 P) of all corners: itself, right, below, below right."""
    pair = torch.arange(
        2, device=cells.device, dtype=cells.dtype
    )  # made where it is used: no copy, no waiting
    steps = (pair[:, None] * pitch + pair).flatten()
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


# Native operations; ops/src/triplane_sample.cpp. Planes have no ring there: a cell at the rim is the last one
# inside, and corners that would be outside have no weight.

_PROJECTION = "int[] axes, float box_warp, int height, int width, float scale"


def _save_points(ctx: FunctionCtx, inputs: tuple, output: object) -> None:
    *tensors, axes, box_warp, height, width, scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.projection = axes, box_warp, height, width, scale


def _corners_backward(ctx: FunctionCtx, _: Tensor, by_weight: Tensor) -> tuple[Tensor | None, ...]:
    (points,) = ctx.saved_tensors
    return _native_gradient(by_weight, points, *ctx.projection), *[None] * 5


def _gradient_backward(ctx: FunctionCtx, direction: Tensor) -> tuple[Tensor | None, ...]:
    by_weight, points = ctx.saved_tensors
    first, second = ctx.needs_input_grad[:2]
    return (
        _native_slopes(direction, points, *ctx.projection) if first else None,
        _native_curvature(direction, by_weight, points, *ctx.projection) if second else None,
        *[None] * 5,
    )


def _new_weight(points: Tensor, axes: Sequence[int]) -> Tensor:
    return points.new_empty(points.shape[0] * points.shape[1], len(axes) // 2, 4)


def _fake_corners(points: Tensor, axes: Sequence[int], *_: object) -> tuple[Tensor, Tensor]:
    weight = _new_weight(points, axes)
    return weight.new_empty(weight.shape[:2], dtype=torch.int32), weight


_native_corners = extension.define(
    f"triplane_corners(Tensor points, {_PROJECTION}) -> (Tensor, Tensor)",
    _fake_corners,
    _corners_backward,
    _save_points,
)
_native_gradient = extension.define(
    f"triplane_gradient(Tensor by_weight, Tensor points, {_PROJECTION}) -> Tensor",
    lambda by_weight, points, *_: points.new_empty(points.shape),
    _gradient_backward,
    _save_points,
)
_native_slopes = extension.define(
    f"triplane_slopes(Tensor direction, Tensor points, {_PROJECTION}) -> Tensor",
    lambda direction, points, axes, *_: _new_weight(points, axes),
)
_native_curvature = extension.define(
    f"triplane_curvature(Tensor direction, Tensor by_weight, Tensor points, {_PROJECTION}) -> Tensor",
    lambda direction, by_weight, points, *_: points.new_empty(points.shape),
)


def _save_rows(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    a, cells, b, pitch, groups, *_ = inputs
    ctx.save_for_backward(a, cells, b)
    ctx.sizes, ctx.rest = (pitch, groups), [None] * (len(inputs) - 3)


def _gather_backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, cells, weight = ctx.saved_tensors
    by_table, _, by_weight = ctx.needs_input_grad[:3]
    return (
        _native_scatter(grad, cells, weight, *ctx.sizes, table.shape[0]) if by_table else None,
        None,
        _native_dot(table, cells, grad, *ctx.sizes) if by_weight else None,
        *ctx.rest,
    )


def _scatter_backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, cells, weight = ctx.saved_tensors
    by_values, _, by_weight = ctx.needs_input_grad[:3]
    return (
        _native_gather(grad, cells, weight, *ctx.sizes) if by_values else None,
        None,
        _native_dot(grad, cells, values, *ctx.sizes) if by_weight else None,
        *ctx.rest,
    )


def _dot_backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, cells, values = ctx.saved_tensors
    by_table, _, by_values = ctx.needs_input_grad[:3]
    return (
        _native_scatter(values, cells, grad, *ctx.sizes, table.shape[0]) if by_table else None,
        None,
        _native_gather(table, cells, grad, *ctx.sizes) if by_values else None,
        *ctx.rest,
    )


_native_gather = extension.define(
    "triplane_gather(Tensor table, Tensor cells, Tensor weight, int pitch, int groups) -> Tensor",
    lambda table, cells, *_: table.new_empty(cells.shape[0], table.shape[1]),
    _gather_backward,
    _save_rows,
)
_native_scatter = extension.define(
    "triplane_scatter(Tensor values, Tensor cells, Tensor weight, int pitch, int groups, int rows) -> Tensor",
    lambda values, cells, weight, pitch, groups, rows: values.new_empty(rows, values.shape[1]),
    _scatter_backward,
    _save_rows,
)
_native_dot = extension.define(
    "triplane_dot(Tensor table, Tensor cells, Tensor values, int pitch, int groups) -> Tensor",
    lambda table, cells, *_: table.new_empty(*cells.shape, 4),
    _dot_backward,
    _save_rows,
)

# On CPUs only:

# triplane_corners and triplane_gather at once, where nothing is differentiated: saves what lies between them.
_native_sample = extension.define(
    f"triplane_sample(Tensor table, Tensor points, {_PROJECTION}) -> Tensor",
    lambda table, points, *_: table.new_empty(points.shape[0] * points.shape[1], table.shape[1]),
)
# (B, I, J) -> (B, J, I), contiguous.
_native_turn = extension.define(
    "triplane_turn(Tensor matrices) -> Tensor",
    lambda matrices: matrices.new_empty(matrices.shape[0], matrices.shape[2], matrices.shape[1]),
    lambda ctx, grad: grad.mT,
)
