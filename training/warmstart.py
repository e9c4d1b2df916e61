"""Optional phase between spheres and adversaries, for synthetic sets that come with depth and normals.

The generator is trained as the decoder of a variational autoencoder: an encoder turns every picture and its
mask into a latent, the generator renders that latent from the picture's camera, and picture, mask and surface
are compared. Heads, classes and surfaces are then there when the adversarial phase begins. That phase draws
latents from the standard normal, which is what the divergence term holds the encoder's latents to.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from datasets.masked_images import Batch
from torch_utils import distributed
from training.generator import Rendering, Want
from training.networks.encoder import Encoder
from training.phases import Context, Term, geometry_terms, local_batch, passes, total
from training.schedules import average_decay, moment
from training.updates import Updater, update_average
from training.views import one_hot, reduce

_MASK_LOGITS = 5.0  # mask channels lie in [-1, 1]: times this they are the logits of the cross-entropy
_SCALES = 3  # of the gradient difference: full size, half, quarter
_FOREGROUND = 0.999  # share of a raw pixel that must be foreground for its depth and normal to count
_BETAS = (0.9, 0.99)  # with momentum, unlike the adversarial phase: there is no moving target here


class WarmStartPhase:
    """Trains generator and encoder; see :class:`training.config.WarmStartConfig`."""

    name = "warm_start"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config = context.config.warm_start
        self.extras = tuple(kind for kind in ("normals", "depth") if getattr(self.config, kind) > 0)
        self.batch = self.config.batch
        self.local = local_batch(self.batch, "warm_start.batch")
        self.length = round(self.config.kimg * 1000)
        self.steps = 0
        sizes = context.config.generator
        self.encoder = Encoder(
            3 + sizes.parts,
            sizes.resolution,
            sizes.z_dim,
            self.config.encoder_width,
            self.config.encoder_width_max,
        ).to(context.device)
        distributed.broadcast_module(self.encoder)
        self.encoder_updater = Updater(
            "encoder",
            self.encoder.parameters(),
            context.guard,
            lr=self.config.lr_encoder,
            betas=_BETAS,
        )
        self.updater = Updater(
            "generator",
            context.models.generator.parameters(),
            context.guard,
            lr=self.config.lr,
            betas=_BETAS,
        )

    def step(self, batch: Batch, images: int) -> None:
        context, config = self.context, self.context.config
        now = moment(config.schedule, 0, config.batch)
        swapped = torch.rand(len(batch), 1, device=context.device) < now.swap_probability
        conditioning = torch.where(swapped, batch.camera.roll(1, 0), batch.camera)
        for part, share in passes(len(batch), config.batch_per_pass):
            terms = self._terms(batch, part, conditioning[part], now.raw_resolution)
            (total(terms, context.curves) * share).backward()
        self.updater.apply()
        self.encoder_updater.apply()
        if self.config.beta:
            self._lower_beta((images + self.batch) / self.length)
        self.steps += 1
        decay = average_decay(config.ema_kimg, config.ema_rampup, images, self.batch)
        update_average(context.models.average, context.models.generator, decay)

    def finish(self) -> None:
        """The adversarial phase goes on from the average: smoother than the weights of the last step."""
        self.context.models.generator.load_state_dict(self.context.models.average.state_dict())

    @torch.no_grad()
    def _lower_beta(self, done: float) -> None:
        """Brings beta down geometrically as the share of the phase that is done grows from 0 to 1/2.

        Fog lets far parts of space receive gradients, surfaces give colours a place: first the one, then the
        other.
        """
        first = self.context.config.generator.beta
        beta = first * (self.config.beta / first) ** min(1.0, 2 * done)
        self.context.models.generator.decoder.sigmoid_beta.fill_(beta)

    def _terms(self, batch: Batch, part: slice, conditioning: Tensor, raw_resolution: int) -> list[Term]:
        config, generator = self.config, self.context.models.generator
        image = batch.image[part].float() / 127.5 - 1
        classes = one_hot(batch.mask[part], generator.parts)
        posterior = self.encoder(torch.cat([image, classes * 2 - 1], dim=1))
        ws = generator.map(posterior.sample(), conditioning, update_average=True)
        field = generator.field(generator.planes(ws, noise_mode="random"))
        want = Want(samples=True, normals=config.normals > 0)
        rendering = generator.synthesise(
            ws, batch.camera[part], field=field, raw_resolution=raw_resolution, want=want
        )
        terms = image_terms(config.image, config.perceptual, rendering, image)
        terms.append(Term("fit/divergence", config.divergence, posterior.divergence().mean()))
        if config.mask:
            terms.append(Term("fit/mask", config.mask, mask_loss(rendering, classes)))
        foreground = reduce(1 - classes[:, :1], raw_resolution)  # (N, 1, r, r)
        if config.depth:
            value = depth_loss(rendering.depth, batch.depth[part], foreground)
            terms.append(Term("fit/depth", config.depth, value))
        if config.normals:
            wanted = reduce(batch.normals[part], raw_resolution)
            inside = (foreground > _FOREGROUND).float()
            value = _mean_where((rendering.normals - wanted).abs(), inside)
            terms.append(Term("fit/normals", config.normals, value))
        return terms + geometry_terms(self.context.config.loss, field, rendering.samples)

    def state_dict(self) -> dict:
        return {
            "steps": self.steps,
            "encoder": self.encoder.state_dict(),
            "encoder_optimiser": self.encoder_updater.state_dict(),
            "generator_optimiser": self.updater.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        self.encoder.load_state_dict(state["encoder"])
        self.encoder_updater.load_state_dict(state["encoder_optimiser"])
        self.updater.load_state_dict(state["generator_optimiser"])


def image_terms(weight: float, weight_perceptual: float, rendering: Rendering, image: Tensor) -> list[Term]:
    """L1 of the picture (N, 3, H, H) and of its raw rendering, and of their gradients at several scales."""
    raw = reduce(image, rendering.image_raw.shape[-1])
    difference = (rendering.image - image).abs().mean() + (rendering.image_raw - raw).abs().mean()
    terms = [Term("fit/image", weight, difference)]
    if weight_perceptual:
        terms.append(Term("fit/gradients", weight_perceptual, gradient_difference(rendering.image - image)))
    return terms


def gradient_difference(difference: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of (N, 3, H, H), summed over scales."""
    value = difference.new_zeros(())
    for scale in range(_SCALES):
        if scale:
            difference = functional.avg_pool2d(difference, 2)
        value = value + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    return value


def mask_loss(rendering: Rendering, classes: Tensor) -> Tensor:
    """Cross-entropy of final and raw mask to one-hot classes (N, P, H, H); raw targets are class shares."""
    raw = reduce(classes, rendering.mask_raw.shape[-1])
    final = functional.cross_entropy(_MASK_LOGITS * rendering.mask, classes)
    return final + functional.cross_entropy(_MASK_LOGITS * rendering.mask_raw, raw)


def depth_loss(depth: Tensor, wanted: Tensor, foreground: Tensor) -> Tensor:
    """L1 in world units of depths (N, 1, r, r) to (N, 1, H, H, 0 = background), where all is foreground."""
    resolution = depth.shape[-1]
    known = reduce((wanted > 0).float(), resolution)
    mean = reduce(wanted, resolution) / known.clamp_min(1e-6)
    return _mean_where((depth - mean).abs(), ((foreground > _FOREGROUND) & (known > _FOREGROUND)).float())


def _mean_where(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over the pixels (N, 1, r, r) that count."""
    return (values * inside).sum() / (inside.sum() * values.shape[1]).clamp_min(1)
