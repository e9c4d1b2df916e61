"""What pictures with known surfaces teach directly: an encoder, and the losses of what is rendered.

Generator and encoder are a variational autoencoder: the encoder turns a picture and its mask into a latent,
the generator renders that latent from the picture's camera, and picture, mask and surface are compared. The
warm start is made of this alone; adversarial training can keep a share of it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from datasets.masked_images import Batch
from training import losses
from training.generator import Rendering
from training.networks.encoder import Posterior
from training.networks.inputs import one_hot, resize
from training.phases import Context, Term
from training.updates import Updater, forget
from training.views import Views
from training.whitening import Moments, aggregate_distance, whiten

_MASK_LOGITS = 5.0  # mask channels lie in [-1, 1]: times this they are the logits of the cross-entropy
_SCALES = 3  # of the gradient difference: full size, half, quarter
_HUE_CELL = 4  # pixels
_RAREST = 1e-3  # share of the pixels below which a class weighs no more
_FOREGROUND = 0.999  # share of a raw pixel that must be foreground for its depth and normal to count
BETAS = (0.9, 0.99)  # Adam's, with momentum, unlike the adversarial ones: there is no moving target here


class Reconstruction:
    """The encoder of a run, its optimiser, and the losses; see :class:`training.config.WarmStartConfig`."""

    def __init__(self, context: Context) -> None:
        self.config = context.config.warm_start
        self.encoder = context.models.encoder
        self.parts = context.config.generator.parts
        self.extras = tuple(kind for kind in ("normals", "depth") if getattr(self.config, kind) > 0)
        self.models = context.models
        self.moments = Moments(context.config.generator.z_dim, context.device)
        self.updater = Updater(
            "encoder", self.encoder.parameters(), context.guard, lr=self.config.lr_encoder, betas=BETAS
        )

    def encode(self, batch: Batch) -> Posterior:
        """Latents of N pictures with their masks."""
        posterior = self.encoder.read(_picture(batch), batch.mask)
        self.moments.observe(posterior)
        return posterior

    def dreamt_terms(self, z: Tensor, rendering: Rendering) -> list[Term]:
        """How unlikely the encoder finds the latents z (N, Z) of generated pictures, per number (in nats, but
        for a constant): the sleep phase of the wake-sleep algorithm (Hinton et al. 1995)."""
        posterior = self.encoder.read(rendering.image.clamp(-1, 1), rendering.mask.argmax(1))
        scaled = (z - posterior.mean).square() * (-posterior.log_variance).exp()
        return [Term("fit/dreamt", self.config.dreams, (scaled + posterior.log_variance).mean() / 2)]

    def whiten(self, generator: Updater) -> None:
        """Makes all latents together standard normal. What the optimisers remember of the layers that write
        and read latents begins anew; ``generator`` is the generator's."""
        generators = (self.models.generator, self.models.average)
        whiten(self.moments, self.encoder, [each.mapping for each in generators])
        forget(self.updater.optimiser, self.encoder.head.parameters())
        forget(generator.optimiser, self.models.generator.mapping.fc0.parameters())

    def state_dict(self) -> dict:
        return {"moments": self.moments.state_dict(), "encoder_optimiser": self.updater.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Of the phase's state; one of a run without reconstructions, or from before moments were kept, has
        none, and they begin here."""
        self.moments.load_state_dict(state.get("moments", {}))
        if "encoder_optimiser" in state:
            self.updater.load_state_dict(state["encoder_optimiser"])

    def aggregate_terms(self, posterior: Posterior) -> list[Term]:
        """How far all latents together are from the standard normal. For a generator that is shown random
        latents as well; a warm start without this learns faster, and whitens once, at its end."""
        if not self.config.aggregate:
            return []
        distance = aggregate_distance(self.moments, posterior)
        return [Term("fit/aggregate", self.config.aggregate, distance)]

    def terms(self, rendering: Rendering, posterior: Posterior, batch: Batch) -> list[Term]:
        """What the rendering of the first N latents, the posterior's, lacks to be the batch's N pictures."""
        config = self.config
        rendering = _first(rendering, len(batch))
        classes = one_hot(batch.mask, self.parts)
        pixels = pixel_weights(classes, config.balance)
        terms = image_terms(config.image, config.perceptual, rendering, _picture(batch), pixels)
        if config.hue:
            hue = losses.hue_difference(rendering.image, _picture(batch), _HUE_CELL)
            terms.append(Term("fit/hue", config.hue, hue))
        terms.append(Term("fit/divergence", config.divergence, posterior.divergence().mean()))
        if config.mask:
            terms.append(Term("fit/mask", config.mask, mask_loss(rendering, classes, pixels)))
        raw_resolution = rendering.image_raw.shape[-1]
        foreground = resize(1 - classes[:, :1], raw_resolution)  # (N, 1, r, r)
        if config.depth:
            value = depth_loss(rendering.depth, batch.depth, foreground)
            terms.append(Term("fit/depth", config.depth, value))
        if config.normals:
            wanted = resize(batch.normals, raw_resolution)
            inside = (foreground > _FOREGROUND).float()
            value = _mean_where((rendering.normals - wanted).abs(), inside)
            terms.append(Term("fit/normals", config.normals, value))
        return terms


def _picture(batch: Batch) -> Tensor:
    return batch.image.float() / 127.5 - 1


def _first(rendering: Rendering, count: int) -> Rendering:
    """The first scenes of a rendering, without their samples."""
    tensors = {name: x[:count] for name, x in vars(rendering).items() if isinstance(x, Tensor)}
    return replace(rendering, **tensors, samples=None)


def pixel_weights(classes: Tensor, balance: float) -> Tensor:
    """How much each pixel of one-hot masks (N, P, H, W) counts, (N, 1, H, W) with mean 1.

    In proportion to its class's share of the batch's pixels to the power of ``-balance``: with 0 all pixels
    are equal, with 1 all classes. An eye has a hundredth of a background's pixels, and is what people look at
    first.
    """
    shares = classes.mean(dim=(0, 2, 3)).clamp_min(_RAREST)
    weights = (classes * shares.pow(-balance).view(1, -1, 1, 1)).sum(1, keepdim=True)
    return weights / weights.mean()


def image_terms(
    weight: float,
    weight_perceptual: float,
    rendering: Rendering,
    image: Tensor,
    pixels: Tensor | None = None,
) -> list[Term]:
    """L1 of the picture (N, 3, H, H) and of its raw rendering, by the weights of the pixels (N, 1, H, H;
    None: all equal), and of their gradients at several scales."""
    pixels = torch.ones_like(image[:, :1]) if pixels is None else pixels
    resolution = rendering.image_raw.shape[-1]
    raw, pixels_raw = resize(image, resolution), resize(pixels, resolution)
    final = ((rendering.image - image).abs() * pixels).mean()
    difference = final + ((rendering.image_raw - raw).abs() * pixels_raw).mean()
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


def mask_loss(rendering: Rendering | Views, classes: Tensor, pixels: Tensor | None = None) -> Tensor:
    """Cross-entropy of final and raw mask to one-hot classes (N, P, H, H), by the weights of the pixels
    (N, 1, H, H; None: all equal); raw targets are class shares."""
    pixels = torch.ones_like(classes[:, :1]) if pixels is None else pixels

    def entropy(mask: Tensor) -> Tensor:
        wanted, weights = (resize(x, mask.shape[-1]) for x in (classes, pixels))
        values = functional.cross_entropy(_MASK_LOGITS * mask, wanted, reduction="none")
        return (values * weights.squeeze(1)).mean()

    return entropy(rendering.mask) + entropy(rendering.mask_raw)


def depth_loss(depth: Tensor, wanted: Tensor, foreground: Tensor) -> Tensor:
    """L1 in world units of depths (N, 1, r, r) to (N, 1, H, H, 0 = background), where all is foreground."""
    resolution = depth.shape[-1]
    known = resize((wanted > 0).float(), resolution)
    mean = resize(wanted, resolution) / known.clamp_min(1e-6)
    return _mean_where((depth - mean).abs(), ((foreground > _FOREGROUND) & (known > _FOREGROUND)).float())


def _mean_where(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over the pixels (N, 1, r, r) that count."""
    return (values * inside).sum() / (inside.sum() * values.shape[1]).clamp_min(1)
