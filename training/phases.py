"""The phases of training, what they share, and the first of them: spheres (method section 3).

A phase is a step that is repeated until the phase is finished; :mod:`training.loop` repeats it, feeds it
pictures, writes curves, grids and snapshots, and stores and restores its state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from datasets.masked_images import Batch
from dnnlib.errors import UserError
from torch_utils import distributed
from training import losses, recompute
from training.config import LossConfig, TrainConfig
from training.curves import Curves
from training.field import Field, sdf_gradient
from training.generator import CAMERA_DIM, Generator
from training.graphs import Recorder
from training.networks.discriminator import DualDiscriminator
from training.networks.encoder import Encoder, EncoderConfig
from training.networks.synthesis import FP16_CLAMP
from training.networks.unet import UNet
from training.rendering.cameras import sample_cameras
from training.rendering.renderer import RaySamples
from training.updates import FiniteGuard, Updater, update_average

_FP16_BLOCKS = 4  # highest resolutions of the discriminators that run in float16


@dataclass(frozen=True)
class Models:
    """The networks of a run, all on one device."""

    generator: Generator
    average: Generator  # running average of the generator: what is saved and looked at
    discriminator: nn.Module  # of pictures
    discriminator_mask: nn.Module  # of pictures with their masks
    encoder: Encoder | None = None  # of pictures with their masks to latents; None without a warm start
    parser: UNet | None = None  # of pictures to masks; None without ``loss.mask_parsing``

    def named(self) -> dict[str, nn.Module]:
        return {name: module for name, module in vars(self).items() if module is not None}


def build_models(config: TrainConfig, device: torch.device) -> Models:
    """Networks of the configured sizes, the same in every process; float16 only where CUDA runs it."""
    fp16_blocks = _FP16_BLOCKS if config.mixed_precision and device.type == "cuda" else 0
    generator_config = config.generator
    if fp16_blocks and generator_config.sr_clamp is None:  # what is saved computes what was trained
        generator_config = replace(generator_config, sr_clamp=FP16_CLAMP)
    generator = Generator(generator_config, fp16=fp16_blocks > 0).requires_grad_(True)
    sizes = config.discriminator
    discriminators = [
        DualDiscriminator(
            CAMERA_DIM if sizes.pose_conditioned else 0,
            config.generator.resolution,
            channels,
            channel_base=sizes.channel_base,
            channel_max=sizes.channel_max,
            mbstd_group_size=sizes.group_size,
            fp16_blocks=fp16_blocks,
        )
        for channels in (3, 3 + config.generator.parts)
    ]
    average = Generator(generator_config).requires_grad_(False).eval()
    models = Models(generator, average, *discriminators, _build_encoder(config), _build_parser(config))
    average.load_state_dict(generator.state_dict())
    for module in models.named().values():
        module.to(device)
        distributed.broadcast_module(module)
    return models


def _build_encoder(config: TrainConfig) -> Encoder | None:
    warm_start, sizes = config.warm_start, config.generator
    if not warm_start.kimg and not warm_start.keep:
        return None
    return Encoder(
        EncoderConfig(
            in_channels=3 + sizes.parts,
            resolution=warm_start.encoder_resolution or sizes.resolution,
            z_dim=sizes.z_dim,
            width=warm_start.encoder_width,
            width_max=warm_start.encoder_width_max,
        )
    )


def _build_parser(config: TrainConfig) -> UNet | None:
    if not config.loss.mask_parsing:
        return None
    return UNet(config.generator.parts, config.parser.widths, config.parser.groups)


@dataclass(frozen=True)
class Context:
    """What every phase works with."""

    config: TrainConfig
    models: Models
    curves: Curves
    guard: FiniteGuard
    device: torch.device
    recorder: Recorder = field(default_factory=Recorder)  # of the parts of a step


class Phase(Protocol):
    """One phase. ``images`` counts what this phase has trained on so far, over all processes."""

    name: str
    batch: int  # images per step over all processes
    extras: (
        tuple[str, ...] | None
    )  # what it wants of each sample beyond picture, mask, camera; None: no pictures
    length: int  # images after which it is finished

    def step(self, batch: Batch | None, images: int) -> None: ...

    def finish(self) -> None:
        """Called once, after the last step."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


@dataclass(frozen=True)
class Term:
    """One weighted summand of a loss."""

    name: str
    weight: float | Tensor
    value: Tensor  # ()


def total(terms: list[Term], curves: Curves) -> Tensor:
    """Weighted sum of the terms, each of which is also drawn as a curve, without its weight."""
    for term in terms:
        curves.add(term.name, term.value)
    return torch.stack([term.value * term.weight for term in terms]).sum()


def local_batch(batch: int, what: str) -> int:
    """This process's share of a batch."""
    world = distributed.world_size()
    if batch % world:
        raise UserError(f"{what} is {batch}, which {world} processes cannot share evenly: give a multiple")
    return batch // world


def passes(count: int, per_pass: int) -> Iterator[tuple[slice, float]]:
    """Slices of a batch that are worked on one after another, each with its share of the batch."""
    step = per_pass or count
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield slice(start, stop), (stop - start) / count


def geometry_terms(config: LossConfig, field: Field, samples: RaySamples, ray_chunk: int = 0) -> list[Term]:
    """The losses on the samples of the rays that keep the signed distances what they claim to be.

    ``ray_chunk``: the distances' gradients are taken for so many rays at a time, and once more backwards;
    0: for all at once.
    """
    terms = []
    if config.eikonal:
        gradient = samples.gradient
        if gradient is None:
            points = samples.points.detach().flatten(1, 2)
            count = max(1, round(config.eikonal_fraction * points.shape[1]))
            if count < points.shape[1]:
                points = points[:, torch.randperm(points.shape[1], device=points.device)[:count]]
            gradient = _sdf_gradients(field, points, ray_chunk * samples.depth.shape[-1])
        terms.append(Term("shape/eikonal", config.eikonal, losses.eikonal(gradient)))
    if config.minimal_surface:
        terms.append(
            Term("shape/minimal_surface", config.minimal_surface, losses.minimal_surface(samples.sdf))
        )
    if config.sdf_consistency:
        value = losses.sdf_consistency(samples.sdf, samples.part_sdf)
        terms.append(Term("shape/sdf_consistency", config.sdf_consistency, value))
    if config.density_consistency:
        value = losses.density_consistency(samples.density, field.density(samples.part_sdf))
        terms.append(Term("shape/density_consistency", config.density_consistency, value))
    return terms


def _sdf_gradients(field: Field, points: Tensor, chunk: int) -> Tensor:
    """Differentiable gradients at points (N, M, 3), ``chunk`` of these N M points at a time; 0: all."""
    step = max(1, chunk // len(points))
    if chunk == 0 or step >= points.shape[1]:
        return sdf_gradient(field, points, create_graph=True)
    pieces = (recompute.call(sdf_gradient, field, piece, True, again=True) for piece in points.split(step, 1))
    return torch.cat(list(pieces), dim=1)


class SpherePhase:
    """Phase (a): every SDF head regresses |x| - (far - near) / 4 with L1 at random points of the box."""

    name = "sphere"
    extras = None

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config = context.config.sphere
        self.batch = self.config.batch
        self.length = self.config.steps * self.batch
        camera = context.config.generator.camera
        self.radius = (camera.far - camera.near) / 4
        self.updater = Updater(
            "generator", context.models.generator.parameters(), context.guard, lr=self.config.lr
        )

    def step(self, batch: Batch | None, images: int) -> None:
        context, generator = self.context, self.context.models.generator
        config = context.config.generator
        count = max(1, self.batch // distributed.world_size())
        z = torch.randn(count, config.z_dim, device=context.device)
        camera = sample_cameras(count).to(context.device)  # whatever the mapping is told: the same sphere
        points = torch.rand(count, self.config.points, 3, device=context.device) - 0.5
        points = points * config.camera.box_warp
        field = generator.field(generator.planes(generator.map(z, camera), noise_mode="random"))
        values = field.query(points, colour=False, parts=True)
        wanted = points.norm(dim=-1, keepdim=True) - self.radius
        terms = [
            Term("sphere/global", 1.0, (values.sdf - wanted).abs().mean()),
            Term("sphere/parts", 1.0, (values.part_sdf - wanted).abs().mean()),
        ]
        total(terms, context.curves).backward()
        self.updater.apply()

    def finish(self) -> None:
        """The average starts from the spheres, not from the untrained network."""
        update_average(self.context.models.average, self.context.models.generator, decay=0.0)

    def state_dict(self) -> dict:
        return {"generator_optimiser": self.updater.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updater.load_state_dict(state["generator_optimiser"])
