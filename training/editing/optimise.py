"""The optimisation of an edit (method section 4).

Each step renders M's camera and some other views of the blend, encodes the pictures and their normal maps for
the prior, asks the objective for gradients, and adds what must be kept. Everything about a view that does not
change (the source's picture, its latents, its condition) is computed once: that is why the views are a fixed
few.

A step of a small model is thousands of small kernels, which a GPU does faster than Python can ask for them.
So all of a step but what is drawn for it and Adam's update is one function of tensors, which
:mod:`training.graphs` records on CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from datasets.labels import label_set
from dnnlib.errors import UserError
from training import distillation
from training.acceleration import Acceleration, compile_modules
from training.distillation import Branch, Noising
from training.editing import keep
from training.editing.portrait import EditedPortrait, LearnedCopy
from training.editing.region import EditRequest, Region, RegionBuilder
from training.editing.settings import EditSettings
from training.editing.views import EditPrior, View, renewed, source_views
from training.field import Field
from training.generator import Rendering, Want
from training.graphs import Recorder
from training.prior import NORMAL_PREFIX
from training.rendering.renderer import RaySamples
from training.scene import Scene, class_map, normal_picture
from training.updates import all_finite, gradients

# Side of the latents from which on a GPU no longer waits for Python (Stable Diffusion's have 64): recording a
# step then gains 3 % and costs 4 GB (docs/performance.md).
_LARGE_LATENTS = 64


@dataclass(frozen=True)
class StepLosses:
    """One step as it is reported: root mean square of the distillation gradients, and the kept terms
    unweighted."""

    step: int
    timestep: int
    texture: float
    geometry: float
    mask: float
    image: float
    sdf: float
    eikonal: float
    consistency: float
    region: float  # share of the box that may change
    total: float
    clip: float = 0.0


@dataclass(frozen=True)
class EditResult:
    """What an edit leaves."""

    before: Scene
    after: EditedPortrait
    request: EditRequest
    losses: list[StepLosses]
    interrupted: bool  # by Ctrl-C; the portrait is as it was then


@dataclass(frozen=True)
class _Prompts:
    """Embedded prompts (1, L, D) of one kind of picture."""

    edited: Tensor
    source: Tensor
    negative: Tensor


@dataclass(frozen=True)
class _Drawn:
    """What is drawn and counted for one step, outside of what is recorded."""

    noise: Tensor  # of the latents of all pictures, texture first
    points: Tensor  # (K, 3) of the box, world units, where the SDFs are kept
    timestep: Tensor  # () int64
    weight: Tensor  # () distillation.clean_latent_weight of it


@dataclass(frozen=True)
class _Measured:
    """What one step finds, all ()."""

    texture: Tensor  # root mean squares of the distillation gradients
    geometry: Tensor
    total: Tensor
    kept: dict[str, Tensor]  # the terms of method section 4.7, unweighted


class EditOptimiser:
    """Edits one portrait.

    Args:
        source: the portrait.
        prior: the diffusion prior; frozen.
        request: the mask, its camera and the edited classes.
        prompt: what the edited portrait should show; source_prompt: what the source shows.
        clip: for the directional loss, where its weight is not 0.
        acceleration: whether the copy that learns is compiled; what is compiled is not recorded unless the
            settings say so, since nobody has tried both.
    """

    def __init__(
        self,
        source: Scene,
        prior: EditPrior,
        request: EditRequest,
        prompt: str,
        source_prompt: str,
        settings: EditSettings | None = None,
        clip: keep.Embeddings | None = None,
        acceleration: Acceleration | None = None,
    ) -> None:
        acceleration = acceleration or Acceleration()
        settings = settings or EditSettings()
        if acceleration.compile and settings.cuda_graphs is None:
            settings = replace(settings, cuda_graphs=False)
        self.settings = settings
        self.objective = distillation.objective(settings.objective)
        self.prior = prior
        self.source = source
        self.request = request
        config = source.generator.config
        self.box_warp = config.camera.box_warp
        self.labels = label_set(config.labels)
        self.marching = config.marching
        self.random = torch.Generator().manual_seed(settings.seed)
        with torch.no_grad():
            self.prompts = _embed(prior, prompt, source_prompt)
            sentences = self.prompts[0].edited, self.prompts[0].source
            self.views = source_views(source, prior, request, settings, sentences)
            self.clip = clip if settings.weights.clip else None
            self.words = None if self.clip is None else self.clip.encode_texts([source_prompt, prompt])
            depth = source.render(request.camera, Want(image=False, mask=False), deterministic=True).depth[
                0, 0
            ]
        record = settings.cuda_graphs
        if record is None:
            record = self.views[0].source_latents.shape[-1] < _LARGE_LATENTS
        self.recorder = Recorder(request.camera.device, record, used_at_once=True)
        self.whole = self.recorder.enabled  # no sizes that depend on values: more work, but recordable
        self.regions = RegionBuilder(
            source.field, request, depth, box_warp=self.box_warp, settings=settings.region
        )
        learned = LearnedCopy(source.generator, source.ws)
        compile_modules(acceleration, learned.synthesis)  # copying has dropped what was compiled
        self.portrait = EditedPortrait(source, learned, self.regions.build())
        self.optimiser = torch.optim.Adam(
            [
                {
                    "params": [p for n, p in learned.named_parameters() if n != "ws" and p.requires_grad],
                    "lr": settings.lr,
                },
                {"params": [learned.ws], "lr": settings.lr_latent},
            ],
            betas=(0.9, 0.99),
            fused=True,
        )
        self._learned = [p for group in self.optimiser.param_groups for p in group["params"]]
        self._nonfinite = 0

    def run(self, progress: Callable[[StepLosses], None] | None = None) -> EditResult:
        """All steps; Ctrl-C ends it early with what there is."""
        losses: list[StepLosses] = []
        interrupted = False
        device_indices = range(torch.cuda.device_count()) if self.request.camera.is_cuda else ()
        with torch.random.fork_rng(devices=device_indices):
            torch.manual_seed(self.settings.seed)
            try:
                for step in range(self.settings.steps):
                    losses.append(self.step(step))
                    if progress is not None:
                        progress(losses[-1])
            except KeyboardInterrupt:
                interrupted = True
        self.recorder = Recorder()  # gives the recordings' memory back to what follows
        self.renew_region()
        return EditResult(self.source, self.portrait, self.request, losses, interrupted)

    def step(self, index: int) -> StepLosses:
        """One update; renews the region when it is time."""
        settings = self.settings
        if index and index % settings.region_every == 0:
            self.renew_region()
        with self.recorder.stream():
            return self._step(index)

    def _step(self, index: int) -> StepLosses:
        settings = self.settings
        # the eikonal term needs the normals' gradient whether or not their pictures are distilled
        wanted = self.objective.geometry or settings.weights.eikonal > 0
        geometry = wanted and index % settings.geometry_every == 0
        chosen = self._draw_views()
        timestep = distillation.annealed_timestep(
            index / max(1, settings.steps - 1),
            len(self.prior.alphas_cumprod),
            settings.first_timestep,
            settings.last_timestep,
        )
        own = 0 if chosen[0] == 0 else None
        views = [self.views[i] for i in chosen]
        what = f"step{' with normals' if geometry else ''}{'' if own is None else ' at M'}"
        inputs = views, self._draw(views, geometry, timestep), self.portrait.region
        gradients_now, measured = self.recorder.run(what, self._gradients, *inputs, geometry, own)
        for parameter, gradient in zip(self._learned, gradients_now, strict=True):
            parameter.grad = gradient
        self._update(index)
        found = {
            "texture": measured.texture,
            "geometry": measured.geometry,
            "total": measured.total,
            **measured.kept,
        }
        numbers = torch.stack([*found.values()]).tolist()  # at once: it waits for the device
        share = self.portrait.region.share
        return StepLosses(index, timestep, region=share, **dict(zip(found, numbers, strict=True)))

    @torch.no_grad()
    def renew_region(self) -> None:
        """The region, from the model as it is now."""
        self.portrait = replace(self.portrait, region=self.regions.build(self.portrait.learned()))

    def _draw(self, views: list[View], geometry: bool, timestep: int) -> _Drawn:
        device = self.request.camera.device
        latents = views[0].source_latents
        pictures = len(views) * len(self._shares(geometry))
        noise = torch.randn((pictures, *latents.shape[1:]), generator=self.random)
        points = torch.rand(self.settings.keep_points, 3, generator=self.random) - 0.5
        weight = distillation.clean_latent_weight(timestep, self.prior.alphas_cumprod)
        return _Drawn(
            noise=noise.to(latents),
            points=points.to(device) * self.box_warp,
            timestep=torch.tensor(timestep, device=device),
            weight=torch.tensor(weight, device=device, dtype=latents.dtype),
        )

    def _gradients(
        self, views: list[View], drawn: _Drawn, region: Region, geometry: bool, own: int | None
    ) -> tuple[tuple[Tensor | None, ...], _Measured]:
        """The gradients of what is learned, and what was measured on the way.

        ``own``: which of the views is M's.
        """
        learned = self.portrait.learned()
        rendering = (
            replace(self.portrait, region=region)
            .scene(learned, everywhere=self.whole)
            .render(
                torch.cat([view.camera for view in views]),
                Want(normals=geometry, samples=True),
                deterministic=not self.settings.jitter,
                chunk=self.settings.chunk,
                proposals=self._proposals(learned),
            )
        )
        classes = class_map(rendering).split(1)
        # what is wanted there now: at M's camera always M, elsewhere what the model shows
        views = [
            view if i == own else renewed(view, seen, self.prior, self.labels, self.request, self.settings)
            for i, (view, seen) in enumerate(zip(views, classes, strict=True))
        ]
        distilled, sizes = self._distil(rendering, views, drawn)
        kept = self._kept(rendering, views, learned, region, drawn.points, own)
        weights = self.settings.weights
        total = weights.distillation * distilled + sum(
            getattr(weights, name) * value for name, value in kept.items()
        )
        measured = _Measured(*sizes, total.detach(), {name: value.detach() for name, value in kept.items()})
        return gradients(total, self._learned), measured

    def _proposals(self, learned: Field) -> list[Field]:
        """Fields that choose the importance samples; none: the blend itself does."""
        return {"blend": [], "frozen": [self.source.field], "union": [self.source.field, learned]}[
            self.settings.proposals
        ]

    def _draw_views(self) -> list[int]:
        """Views of this step: M's, then others without repetition; of a single one, M's every other time."""
        count = self.settings.views_per_step
        if count == 1:
            return [0] if torch.rand((), generator=self.random) < 0.5 else self._draw_others(1)
        return [0, *self._draw_others(count - 1)]

    def _draw_others(self, count: int) -> list[int]:
        return (torch.randperm(len(self.views) - 1, generator=self.random)[:count] + 1).tolist()

    def _shares(self, normals: bool) -> list[float]:
        """Shares of the kinds of pictures that are distilled, texture first; ``normals``: are there any?"""
        share = self.settings.weights.geometry if self.objective.geometry else 0.0
        if share and normals:
            return [1 - share, share * self.settings.geometry_every]  # it is left out of the steps between
        return [1 - share]

    def _distil(
        self, rendering: Rendering, views: list[View], drawn: _Drawn
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Surrogate loss of the blended gradients, per view, and the root mean squares of both."""
        shares = self._shares(rendering.normals is not None)
        prompts = self.prompts[: len(shares)]
        encoded = [self.prior.encode(rendering.image)]
        source_latents = [view.source_latents for view in views]
        if len(shares) == 2:
            encoded.append(self.prior.encode(normal_picture(rendering)))
            source_latents += [view.source_normal_latents for view in views]
        latents = torch.cat(encoded)

        negative = _per_view([kind.negative for kind in prompts], len(views))
        edited = Branch(
            latents.detach(),
            _per_view([kind.edited for kind in prompts], len(views)),
            negative,
            _conditions([view.condition for view in views], len(shares)),
        )
        source = Branch(
            torch.cat(source_latents),
            _per_view([kind.source for kind in prompts], len(views)),
            negative,
            _conditions([view.source_condition for view in views], len(shares)),
        )
        noising = Noising(drawn.timestep.expand(len(latents)), drawn.noise)
        gradient = self.objective.gradient(
            self.prior, edited, source if self.objective.paired else None, noising, self.settings.guidance
        )
        if self.objective.paired:
            gradient = gradient * drawn.weight
        # Outside the footprint the picture should not change. A new class that a view does not show yet has
        # no footprint there: until it shows, M's view alone brings it.
        footprint = torch.cat([view.footprint for view in views]).repeat(len(shares), 1, 1)[:, None]
        gradient = gradient * functional.adaptive_max_pool2d(footprint.float(), gradient.shape[-2:])
        parts = gradient.split(len(views))
        sizes = [part.square().mean().sqrt() for part in parts] + [gradient.new_zeros(())]
        blend = torch.cat([part * (s * len(shares)) for part, s in zip(parts, shares, strict=True)])
        return distillation.surrogate(latents, blend), (sizes[0], sizes[1])

    def _kept(
        self,
        rendering: Rendering,
        views: list[View],
        learned: Field,
        region: Region,
        points: Tensor,
        own: int | None,
    ) -> dict[str, Tensor]:
        """The terms of method section 4.7, unweighted. ``own``: which of the views is M's."""
        request, samples = self.request, rendering.samples
        mask = rendering.image.new_zeros(())
        if own is not None:
            rays = keep.mask_likelihood(
                _one_view(samples, own), request.requested, request.changed, self.marching
            )
            final = keep.mask_cross_entropy(rendering.mask[own : own + 1], request.requested, request.changed)
            mask = 0.5 * (rays + final)
        sources = torch.cat([view.source_image for view in views])
        clip = {}
        if self.clip is not None:
            clip["clip"] = keep.clip_direction(self.clip, sources, rendering.image, self.words)
        return {
            **clip,
            "mask": mask,
            "image": keep.image_outside(
                rendering.image,
                sources,
                torch.cat([view.footprint for view in views]),
            ),
            "sdf": keep.sdf_outside(self.source.field, learned, region, points, whole=self.whole),
            "eikonal": keep.eikonal_inside(samples, region, whole=self.whole)
            if samples.gradient is not None
            else mask.new_zeros(()),
            "consistency": keep.consistency_inside(samples, region, whole=self.whole),
        }

    def _update(self, index: int) -> None:
        """Adam's step; a step with non-finite gradients is left out, counted, and too many end the edit."""
        if not all_finite([p.grad for p in self._learned if p.grad is not None]):  # waits for the device
            self._nonfinite += 1
            if self._nonfinite > self.settings.max_nonfinite:
                raise UserError(
                    f"the edit met non-finite gradients {self._nonfinite} times; try a smaller --guidance"
                )
            return
        rise = min(1.0, (index + 1) / max(1, self.settings.warmup_steps))
        fall = 0.5 + 0.5 * math.cos(
            math.pi * index / max(1, self.settings.steps)
        )  # settles as the noise level does
        for group, rate in zip(
            self.optimiser.param_groups, (self.settings.lr, self.settings.lr_latent), strict=True
        ):
            group["lr"] = rate * rise * (0.1 + 0.9 * fall)
        self.optimiser.step()


def _one_view(samples: RaySamples, view: int) -> RaySamples:
    """The samples of one of the views, (1, R, S, ...)."""
    one = {name: value[view : view + 1] for name, value in vars(samples).items() if value is not None}
    return replace(samples, **one)


def _embed(prior: EditPrior, prompt: str, source_prompt: str) -> tuple[_Prompts, _Prompts]:
    """Prompts of pictures and of normal maps."""
    pictures = [prompt, source_prompt, prior.negative_prompt(normals=False)]
    normals = [
        f"{NORMAL_PREFIX} {prompt}",
        f"{NORMAL_PREFIX} {source_prompt}",
        prior.negative_prompt(normals=True),
    ]
    embedded = prior.embed(pictures + normals).split(1)
    return _Prompts(*embedded[:3]), _Prompts(*embedded[3:])


def _per_view(texts: list[Tensor], views: int) -> Tensor:
    """Embeddings (1, L, D), each repeated for all views: (len(texts) * views, L, D)."""
    return torch.cat([text.expand(views, -1, -1) for text in texts])


def _conditions(conditions: list[Tensor | None], kinds: int) -> Tensor | None:
    """Conditions of all views (1, 3, S, S), once for each kind of picture; None where the prior sees none."""
    return None if conditions[0] is None else torch.cat(conditions).repeat(kinds, 1, 1, 1)
