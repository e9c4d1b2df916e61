"""Volume rendering of samples along their rays: densities to weights, values at samples to what a ray sees.

The method averages colour, density and depth between neighbouring samples, so S samples make S - 1 intervals
and there is no last, infinite one. With interval weights w_i the picture is
``sum_i w_i (c_i + c_{i+1}) / 2``. That is ``sum_i v_i c_i`` with ``v_i = (w_{i-1} + w_i) / 2``: the weights
are moved to the samples once, and colours, masks and normals need neither averaging nor sorting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from torch_utils import extension
from torch_utils.ops.types import of_one_type, undisturbed

MARCHING = ("published", "sigma")
CUDA_SAMPLES = 1024  # the most on a ray that the CUDA kernel has room for

# Half precision is computed in float32.
NATIVE_TYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


@dataclass(frozen=True)
class Marched:
    """What rays (...) see of their samples."""

    values: Tensor  # (..., F)
    depth: Tensor  # (...) expected depth; infinite where the ray meets nothing
    weight: Tensor  # (...) opacity in [0, 1]
    mask: Tensor | None  # (..., P) in [0, 1]
    normals: Tensor | None  # (..., 3)


def march_rays(
    density: Tensor,
    depth: Tensor,
    values: Tensor,
    part_sdf: Tensor | None = None,
    normals: Tensor | None = None,
    *,
    marching: str,
    sharpness: float = 20.0,
    impl: str = "auto",
) -> Marched:
    """Composites all that is known at the samples of rays, which may lie along them in any order.

    With v_s the samples' weights: ``sum v c``, ``sum v z / sum v``, ``sum v``, ``sum v n``, and the mask
    ``sum v sigmoid(-sharpness s_p)``, whose gradient reaches the parts' signed distances only.

    Args:
        density, depth: (..., S); values: (..., S, F); part_sdf: (..., S, P); normals: (..., S, 3). Of
            several types the widest counts.
        marching: see :func:`interval_weights`.
        impl: 'auto', 'reference' or 'native'. The native operation is differentiable twice. It has no
            gradient by depths: where one is needed, the reference runs.
    """
    if marching not in MARCHING:
        raise ValueError(f"marching is {marching!r}; it must be one of {MARCHING}")
    given = (density, depth, values, part_sdf, normals)
    alike = iter(of_one_type(*(x for x in given if x is not None)))
    given = [None if x is None else next(alike) for x in given]
    density, depth, *at_samples = given
    supported = (
        density.dtype in NATIVE_TYPES.get(density.device.type, ())
        and depth.shape == density.shape
        and all(x.shape[:-1] == density.shape for x in at_samples if x is not None)
        and not (depth.requires_grad and torch.is_grad_enabled())
        and (impl == "native" or density.device.type != "cuda" or density.shape[-1] <= CUDA_SAMPLES)
    )
    if not supported or not extension.use_native("march_rays", impl, density.device, values.numel()):
        return _reference(*given, marching, sharpness)
    shape, last = density.shape[:-1], len(density.shape) - 1
    rays, wide = shape.numel(), torch.promote_types(density.dtype, torch.float32)
    flat = [None if x is None else x.to(wide).reshape(rays, *x.shape[last:]) for x in given]
    found = _march(*flat, marching == "published", sharpness)
    ray = [x.to(density.dtype).reshape(shape + x.shape[1:]) for x in found[:5]]
    return Marched(*ray[:3], None if part_sdf is None else ray[3], None if normals is None else ray[4])


def _reference(
    density: Tensor,
    depth: Tensor,
    values: Tensor,
    part_sdf: Tensor | None,
    normals: Tensor | None,
    marching: str,
    sharpness: float,
) -> Marched:
    """The operation in plain PyTorch."""
    weights = unsorted_weights(density, depth, marching)
    mask = None if part_sdf is None else composite(torch.sigmoid(-sharpness * part_sdf), weights.detach())
    return Marched(
        values=composite(values, weights),
        depth=expected_depth(depth, weights),
        weight=weights.sum(-1),
        mask=mask,
        normals=None if normals is None else composite(normals, weights),
    )


def interval_weights(density: Tensor, depth: Tensor, marching: str) -> Tensor:
    """Weight of each interval: ``w_i = T_i (1 - exp(-m_i d_i))`` with ``T_i = exp(-sum_{j<i} m_j d_j)``.

    d_i is the length of interval i and m_i its density: sigma_mid for 'sigma', softplus(sigma_mid - 1) for
    'published', where sigma_mid is the mean of both ends.

    Args:
        density, depth: (..., S), sorted by depth.

    Returns:
        (..., S - 1), non-negative, at most 1 in sum.
    """
    if marching not in MARCHING:
        raise ValueError(f"marching is {marching!r}; it must be one of {MARCHING}")
    middle = 0.5 * (density[..., :-1] + density[..., 1:])
    if marching == "published":
        middle = functional.softplus(middle - 1)
    thickness = middle * (depth[..., 1:] - depth[..., :-1])
    # The published product of (1 - alpha + 1e-10) is this exponential, up to the 1e-10 that keeps it from 0.
    before = functional.pad(torch.cumsum(thickness, dim=-1)[..., :-1], (1, 0))
    return torch.exp(-before) * -torch.expm1(-thickness)


def sample_weights(weights: Tensor) -> Tensor:
    """Interval weights (..., S - 1) to sample weights (..., S): half of each interval goes to either end."""
    return 0.5 * (functional.pad(weights, (0, 1)) + functional.pad(weights, (1, 0)))


def unsorted_weights(density: Tensor, depth: Tensor, marching: str) -> Tensor:
    """Sample weights (..., S) of samples that lie along their rays in any order, in that order.

    Sorting the densities and bringing the weights back is far cheaper than sorting colours and parts.

    Args:
        density: (..., S); depth: (..., S), or of a shape that broadcasts to it.
    """
    depth, order = depth.sort(dim=-1)
    order = order.expand_as(density)
    weights = sample_weights(interval_weights(density.gather(-1, order), depth, marching))
    return torch.zeros_like(weights).scatter(-1, order, weights)


def composite(values: Tensor, weights: Tensor) -> Tensor:
    """``sum_s v_s c_s``: values (..., S, F) and sample weights (..., S), in any common order, to (..., F)."""
    return (weights.unsqueeze(-2) @ values).squeeze(-2)


def expected_depth(depth: Tensor, weights: Tensor) -> Tensor:
    """``sum(v z) / sum(v)`` over (..., S) -> (...); infinity where the ray meets nothing at all.

    The division is masked, not repaired afterwards: the gradient is 0, not NaN, where all weights are 0, or
    so little that its inverse is infinite.
    """
    total = weights.sum(-1)
    met = total >= torch.finfo(total.dtype).tiny
    mean = (weights * depth).sum(-1) / torch.where(met, total, torch.ones_like(total))
    return torch.where(met, mean, torch.full_like(mean, torch.inf))


# ---- The native operation: schemas, shapes and derivatives of what ops/src/march_rays.cpp computes. Rays are
# flat there: (R, S), (R, S, F) ...


def _keep(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    density, depth, values, part_sdf, normals, *ctx.settings = inputs
    weights = output[5]
    ctx.save_for_backward(density, depth, values, part_sdf, normals, weights)
    ctx.mark_non_differentiable(weights)
    ctx.set_materialize_grads(False)


def _backward(ctx: FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, weights = ctx.saved_tensors
    by_values, by_depth, by_weight, by_mask, by_normals, _ = grads
    found = _march_gradient(
        *inputs, weights, by_values, by_depth, by_weight, by_mask, by_normals, *ctx.settings
    )
    # The operation returns an empty tensor where no cotangent came in, which is not to be taken for the
    # gradient by an empty input: that one has the input's shape.
    needed = ctx.needs_input_grad
    wanted = (
        needed[0],
        needed[2] and by_values is not None,
        needed[3] and by_mask is not None,
        needed[4] and by_normals is not None,
    )
    to_density, *to_others = (grad if want else None for grad, want in zip(found, wanted, strict=True))
    return to_density, None, *to_others, None, None


def _keep_for_gradient(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.published, ctx.sharpness = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _gradient_backward(ctx: FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    density, depth, values, part_sdf, normals, _, *cotangents = ctx.saved_tensors
    tensors = density, depth, values, part_sdf, normals, *cotangents, *grads
    found = _SecondByReference.apply(ctx.published, ctx.sharpness, *tensors)
    return found[0], None, *found[1:4], None, *found[4:], None, None


class _SecondByReference(Function):
    """:func:`_second` as the last derivative there is."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, published: bool, sharpness: float, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return _second(tensors[:5], tensors[5:10], tensors[10:], published, sharpness)

    @staticmethod
    def backward(ctx: FunctionCtx, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("march_rays is not differentiable a third time")


def _second(
    inputs: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
    published: bool,
    sharpness: float,
) -> tuple[Tensor | None, ...]:
    """The second derivative, which no training step takes: by the reference.

    That of the sum of each direction times the gradient by density, values, part_sdf and normals, under
    these cotangents: by the same four, and by the cotangents.
    """
    density, depth, *others = inputs
    with torch.enable_grad(), undisturbed(density):
        again = [None if x is None else x.detach().requires_grad_() for x in (density, *others)]
        by = [None if x is None else x.detach().requires_grad_() for x in cotangents]
        rays = _reference(again[0], depth, *again[1:], "published" if published else "sigma", sharpness)
        marched = [rays.values, rays.depth, rays.weight, rays.mask, rays.normals]
        pairs = [(y, each) for y, each in zip(marched, by, strict=True) if y is not None and each is not None]
        leaves = [x for x in again if x is not None]
        first = dict(zip(map(id, leaves), _gradients(pairs, leaves, create_graph=True), strict=True))
        second = [
            (first[id(x)], along)
            for x, along in zip(again, directions, strict=True)
            if x is not None and along is not None and first[id(x)] is not None and first[id(x)].requires_grad
        ]
        wanted = [*again, *by]
        found = iter(_gradients(second, [x for x in wanted if x is not None], create_graph=False))
    return tuple(None if x is None else next(found) for x in wanted)


def _gradients(
    pairs: list[tuple[Tensor, Tensor]], leaves: list[Tensor], *, create_graph: bool
) -> list[Tensor | None]:
    """Derivatives of ``sum y . by`` over the pairs (y, by)."""
    if not pairs:
        return [None] * len(leaves)
    outputs, cotangents = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, leaves, cotangents, create_graph=create_graph, allow_unused=True)
    return list(found)


def _fake(
    density: Tensor,
    depth: Tensor,
    values: Tensor,
    part_sdf: Tensor | None,
    normals: Tensor | None,
    *_: object,
) -> tuple[Tensor, ...]:
    rays = len(density)
    return (
        density.new_empty(rays, values.shape[2]),
        density.new_empty(rays),
        density.new_empty(rays),
        density.new_empty(rays, 0 if part_sdf is None else part_sdf.shape[2]),
        density.new_empty(rays, 0 if normals is None else 3),
        density.new_empty(density.shape),
    )


def _fake_gradient(
    density: Tensor,
    depth: Tensor,
    values: Tensor,
    part_sdf: Tensor | None,
    normals: Tensor | None,
    weights: Tensor,
    by_values: Tensor | None,
    by_depth: Tensor | None,
    by_weight: Tensor | None,
    by_mask: Tensor | None,
    by_normals: Tensor | None,
    *_: object,
) -> tuple[Tensor, ...]:
    pairs = ((values, by_values), (part_sdf, by_mask), (normals, by_normals))
    return density.new_empty(density.shape), *(
        density.new_empty(0 if x is None or by is None else x.shape) for x, by in pairs
    )


_INPUTS = "Tensor density, Tensor depth, Tensor values, Tensor? part_sdf, Tensor? normals"
_march = extension.define(
    f"march_rays({_INPUTS}, bool published, float sharpness)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake,
    _backward,
    _keep,
)
_march_gradient = extension.define(
    f"march_rays_gradient({_INPUTS}, Tensor weights, Tensor? by_values, Tensor? by_depth, Tensor? by_weight, "
    "Tensor? by_mask, Tensor? by_normals, bool published, float sharpness)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_gradient,
    _gradient_backward,
    _keep_for_gradient,
)
