"""The volume renderer: rays through a field to colour, mask, depth, normals and part images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from torch_utils.ops import march_rays as marching
from training import recompute
from training.field import Field, sdf_gradient
from training.rendering import sampling

_MASK_SHARPNESS = 20.0  # mask channel p is the composite of sigmoid(-20 s_p)
_UNIT_FLOOR = (
    1e-6  # added to |gradient|^2: outside the box the gradient is zero, and 1 / 1e-3 bounds its derivative
)


@dataclass(frozen=True)
class RenderOptions:
    """How to march, and what to return."""

    near: float  # where rays begin, in world units from the camera
    far: float  # where they end
    samples_coarse: int  # stratified samples per ray, at least 4
    samples_fine: int  # importance samples per ray; 0 for none
    marching: str = "published"  # 'published' or 'sigma', see march_rays.interval_weights
    deterministic: bool = False  # fixed offsets instead of random ones
    chunk: int | None = (
        None  # rays (of all scenes together) at a time: bounds memory; with gradients by recomputing
    )
    mask: bool = True  # render the parts' mask channels
    normals: bool = False  # render normals
    parts: bool = False  # render each part alone, with its own density: P times the compositing
    samples: bool = False  # return the samples, for losses on them


@dataclass(frozen=True)
class RaySamples:
    """The samples of all rays: coarse ones first, then fine ones, each in the order in which they were drawn.

    Values keep their autograd graph, for losses; where the samples lie is not differentiable.
    """

    points: Tensor  # (N, R, S, 3) world units; no gradient unless the rays carry one
    depth: Tensor  # (N, R, S) from the ray's origin
    sdf: Tensor  # (N, R, S, 1)
    density: Tensor  # (N, R, S, 1)
    colour: Tensor  # (N, R, S, F) in about [0, 1]
    part_sdf: Tensor | None  # (N, R, S, P); None unless mask or parts are rendered
    gradient: Tensor | None  # (N, R, S, 3) of the global signed distance; None unless normals are rendered


@dataclass(frozen=True)
class VolumeRendering:
    """What N x R rays see."""

    features: Tensor  # (N, R, F) in [-1, 1]; the first three are RGB
    depth: Tensor  # (N, R, 1) distance along the ray, within the range of the batch's samples
    weight: Tensor  # (N, R, 1) opacity in [0, 1]
    mask: Tensor | None = None  # (N, R, P) in [-1, 1]; its gradient reaches the parts' signed distances only
    normals: Tensor | None = None  # (N, R, 3) world space, outwards, of length <= weight
    part_features: Tensor | None = None  # (N, P, R, F) in [-1, 1]
    part_depth: Tensor | None = None  # (N, P, R, 1)
    samples: RaySamples | None = None


def render(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    options: RenderOptions,
    *,
    proposals: Sequence[Field] = (),
    generator: torch.Generator | None = None,
) -> VolumeRendering:
    """Renders rays through a field.

    Stratified samples, then importance samples where the coarse pass found something, merged (method
    section 8). Every sample is evaluated once: the coarse pass and the final one share their values.

    Args:
        field: what is rendered.
        origins, directions: (N, R, 3); directions of unit length. Scene n of the field is seen along rays n.
        proposals: fields whose coarse passes choose the importance samples, ``samples_fine / len(proposals)``
            each; by default the rendered field itself. An edit gives the old and the new one, so that neither
            surface is missed.
        generator: source of randomness on the rays' device; it gives the same samples whatever ``chunk`` is.
    """
    offsets, quantiles = _draw(origins, options, max(1, len(proposals)), generator)
    scenes, rays = origins.shape[:2]
    step = rays if options.chunk is None else max(1, options.chunk // scenes)
    pieces = []
    for start in range(0, rays, step):
        some = slice(start, start + step)
        drawn = offsets[:, some], [u[:, some] for u in quantiles]
        arguments = (field, proposals, origins[:, some], directions[:, some], drawn, options)
        pieces.append(recompute.call(_render_rays, *arguments, again=step < rays and torch.is_grad_enabled()))
    nearest = torch.stack([span[0] for _, span in pieces]).amin()
    furthest = torch.stack([span[1] for _, span in pieces]).amax()
    return _clamp_depths(_join_chunks([piece for piece, _ in pieces]), nearest, furthest)


def _draw(
    origins: Tensor, options: RenderOptions, proposals: int, generator: torch.Generator | None
) -> tuple[Tensor, list[Tensor]]:
    """Random numbers for all rays at once, so that neither chunks nor recomputation change the samples.

    Returns offsets (N, R, coarse) and, for each proposal, quantiles (N, R, fine / proposals).
    """
    if options.samples_coarse < 4:
        raise ValueError(f"samples_coarse is {options.samples_coarse}; importance sampling needs at least 4")
    if options.samples_fine % proposals:
        raise ValueError(
            f"samples_fine is {options.samples_fine}; it must divide by the {proposals} proposals"
        )
    shape, each = origins.shape[:2], options.samples_fine // proposals
    like = {"device": origins.device, "dtype": origins.dtype}
    if options.deterministic:
        quantile = torch.linspace(0, 1, each, **like).expand(*shape, each)
        return torch.full((*shape, options.samples_coarse), 0.5, **like), [quantile] * proposals
    offsets = torch.rand(*shape, options.samples_coarse, generator=generator, **like)
    return offsets, [torch.rand(*shape, each, generator=generator, **like) for _ in range(proposals)]


def _render_rays(
    field: Field,
    proposals: Sequence[Field],
    origins: Tensor,
    directions: Tensor,
    drawn: tuple[Tensor, list[Tensor]],
    options: RenderOptions,
) -> tuple[VolumeRendering, tuple[Tensor, Tensor]]:
    """Renders some rays. Depths are not clamped yet; the range to clamp them to is returned beside."""
    offsets, quantiles = drawn
    coarse = sampling.stratified(options.near, options.far, offsets)  # (N, R, coarse)
    if proposals:
        with torch.no_grad():
            points = _points(origins, directions, coarse).flatten(1, 2)
            densities = [each.density(each.sdf(points)) for each in proposals]
        fine = _importance(coarse, densities, quantiles, options)
        samples = _evaluate(field, origins, directions, torch.cat([coarse, fine], dim=-1), options)
    else:
        samples = _evaluate(field, origins, directions, coarse, options)
        if options.samples_fine:
            fine = _importance(coarse, [samples.density], quantiles, options)
            samples = _concatenate([samples, _evaluate(field, origins, directions, fine, options)], dim=2)
    return _integrate(field, samples, options)


def _points(origins: Tensor, directions: Tensor, depth: Tensor) -> Tensor:
    """Rays (N, R, 3) at depths (N, R, S) to points (N, R, S, 3)."""
    return torch.addcmul(origins.unsqueeze(2), directions.unsqueeze(2), depth.unsqueeze(3))


@torch.no_grad()
def _importance(
    coarse: Tensor, densities: Sequence[Tensor], quantiles: Sequence[Tensor], options: RenderOptions
) -> Tensor:
    """New depths (N, R, fine), those of each coarse pass after those of the one before."""
    new = []
    for density, u in zip(densities, quantiles, strict=True):
        weights = marching.interval_weights(density.reshape(coarse.shape), coarse, options.marching)
        new.append(sampling.importance(coarse, weights, u))
    return torch.cat(new, dim=-1)


def _evaluate(
    field: Field, origins: Tensor, directions: Tensor, depth: Tensor, options: RenderOptions
) -> RaySamples:
    """The field at (N, R, S) depths."""
    points = _points(origins, directions, depth)
    flat = points.flatten(1, 2)  # (N, R * S, 3)
    values = field.query(flat, colour=True, parts=options.mask or options.parts)

    def by_ray(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.unflatten(1, depth.shape[1:])

    return RaySamples(
        points=points,
        depth=depth,
        sdf=by_ray(values.sdf),
        density=by_ray(values.density),
        colour=by_ray(values.colour),
        part_sdf=by_ray(values.part_sdf),
        gradient=by_ray(sdf_gradient(field, flat)) if options.normals else None,
    )


def _integrate(
    field: Field, samples: RaySamples, options: RenderOptions
) -> tuple[VolumeRendering, tuple[Tensor, Tensor]]:
    """Composites samples along their rays; also returns the smallest and the largest depth of all samples."""
    unit = part_features = part_depth = None
    if options.normals:
        gradient = samples.gradient
        unit = gradient * torch.rsqrt(gradient.square().sum(-1, keepdim=True) + _UNIT_FLOOR)
    seen = marching.march_rays(
        samples.density.squeeze(-1),
        samples.depth,
        samples.colour,
        samples.part_sdf if options.mask else None,
        unit,
        marching=options.marching,
        sharpness=_MASK_SHARPNESS,
    )
    if options.parts:
        part_density = field.density(samples.part_sdf).movedim(-1, 1)  # (N, P, R, S)
        part_weights = marching.unsorted_weights(part_density, samples.depth.unsqueeze(1), options.marching)
        part_features = torch.einsum("nprs,nrsf->nprf", part_weights, samples.colour) * 2 - 1
        part_depth = marching.expected_depth(samples.depth.unsqueeze(1), part_weights).unsqueeze(-1)
    rendered = VolumeRendering(
        features=seen.values * 2 - 1,
        depth=seen.depth.unsqueeze(-1),
        weight=seen.weight.unsqueeze(-1),
        mask=None if seen.mask is None else seen.mask * 2 - 1,
        normals=seen.normals,
        part_features=part_features,
        part_depth=part_depth,
        samples=samples if options.samples else None,
    )
    return rendered, (samples.depth.amin(), samples.depth.amax())


def _concatenate(pieces: Sequence, dim: int):
    """Dataclasses of tensors (or None) of one type, joined field by field."""
    if len(pieces) == 1:
        return pieces[0]
    joined = {}
    for item in fields(pieces[0]):
        values = [getattr(piece, item.name) for piece in pieces]
        joined[item.name] = None if values[0] is None else torch.cat(values, dim=dim)
    return type(pieces[0])(**joined)


def _join_chunks(pieces: Sequence[VolumeRendering]) -> VolumeRendering:
    """Renderings of successive rays as one."""
    if len(pieces) == 1:
        return pieces[0]
    samples = None
    if pieces[0].samples is not None:
        samples = _concatenate([piece.samples for piece in pieces], dim=1)
    rest = [replace(piece, samples=None, part_features=None, part_depth=None) for piece in pieces]
    by_part = {}
    if pieces[0].part_features is not None:  # rays come third in these
        by_part["part_features"] = torch.cat([piece.part_features for piece in pieces], dim=2)
        by_part["part_depth"] = torch.cat([piece.part_depth for piece in pieces], dim=2)
    return replace(_concatenate(rest, dim=1), samples=samples, **by_part)


def _clamp_depths(rendered: VolumeRendering, nearest: Tensor, furthest: Tensor) -> VolumeRendering:
    """Depths within the range of all samples of the batch; rays that met nothing get the largest."""
    part_depth = rendered.part_depth
    return replace(
        rendered,
        depth=rendered.depth.clamp(nearest, furthest),
        part_depth=None if part_depth is None else part_depth.clamp(nearest, furthest),
    )
