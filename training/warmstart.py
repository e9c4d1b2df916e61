"""Optional phase between spheres and adversaries, for synthetic sets that come with depth and normals.

Every training picture gets a latent of its own, fitted together with the generator to the picture, its mask
and its surface (generative latent optimisation, Bojanowski et al. 2018). Heads, classes and surfaces are then
there when the adversarial phase begins. That phase draws latents from the standard normal, so the fitted ones
are kept normal too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from datasets.masked_images import Batch
from dnnlib.errors import UserError
from torch_utils import distributed
from training.generator import Rendering, Want
from training.phases import Context, Term, geometry_terms, local_batch, passes, total
from training.schedules import average_decay, moment
from training.updates import Updater, update_average
from training.views import one_hot, reduce

_MASK_LOGITS = 5.0  # mask channels lie in [-1, 1]: times this they are the logits of the cross-entropy
_SCALES = 3  # of the gradient difference: full size, half, quarter
_STANDARDISE_EVERY = 50  # steps between two corrections of the latents' mean and covariance
_FOREGROUND = 0.999  # share of a raw pixel that must be foreground for its depth and normal to count


class LatentTable:
    """One latent per picture, (n, z_dim), with an Adam whose moments move only for the rows that are touched.

    Rows keep the norm sqrt(z_dim), as the mapping normalises them anyway; now and then the whole table is
    brought back to mean 0 and covariance 1.
    """

    def __init__(
        self, count: int, z_dim: int, lr: float, betas: tuple[float, float], device: torch.device
    ) -> None:
        self.lr = lr
        self.betas = betas
        self.latents = normalise(torch.randn(count, z_dim, device=device))
        self.mean = torch.zeros_like(self.latents)
        self.square = torch.zeros_like(self.latents)
        self.updates = torch.zeros(count, 1, device=device)  # how often each row was touched

    def rows(self, index: Tensor) -> Tensor:
        """Latents (N, z_dim) of the given pictures, as a leaf that collects their gradient."""
        return self.latents[index].clone().requires_grad_()

    @torch.no_grad()
    def update(self, index: Tensor, gradient: Tensor) -> None:
        """Moves the touched rows; ``gradient`` (N, z_dim) is that of the mean over the whole batch."""
        index, gradient = _gather(index, gradient)
        index, where = index.unique(return_inverse=True)
        gradient = torch.zeros(len(index), gradient.shape[1], device=gradient.device).index_add_(
            0, where, gradient
        )
        beta1, beta2 = self.betas
        updates = self.updates[index] + 1
        mean = self.mean[index].lerp(gradient, 1 - beta1)
        square = self.square[index].lerp(gradient.square(), 1 - beta2)
        step = mean / (1 - beta1**updates) / ((square / (1 - beta2**updates)).sqrt() + 1e-12)
        self.latents[index] = normalise(self.latents[index] - self.lr * step)
        self.mean[index], self.square[index], self.updates[index] = mean, square, updates

    @torch.no_grad()
    def standardise(self) -> None:
        """Whitens the table: mean 0, covariance 1, rows at norm sqrt(z_dim). Few rows: the mean only."""
        count, dim = self.latents.shape
        centred = self.latents - self.latents.mean(0)
        if count >= 4 * dim:
            values, vectors = torch.linalg.eigh((centred.t() @ centred / count).double())
            # symmetric square root: of all whitening maps the one that moves the rows least
            whiten = vectors @ torch.diag(values.clamp_min(1e-4).rsqrt()) @ vectors.t()
            centred = centred @ whiten.float()
        self.latents = normalise(centred)

    def state_dict(self) -> dict:
        return {
            "latents": self.latents,
            "mean": self.mean,
            "square": self.square,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict) -> None:
        if state["latents"].shape != self.latents.shape:
            raise UserError(
                f"the state was saved with {len(state['latents'])} pictures, --data has {len(self.latents)} "
                "(mirror images counted): warm start fits one latent per picture, give it the same set"
            )
        for name, value in state.items():
            setattr(self, name, value.to(self.latents))


class WarmStartPhase:
    """Fits generator and latents; see :class:`training.config.WarmStartConfig`."""

    name = "warm_start"

    def __init__(self, context: Context, pictures: int) -> None:
        self.context = context
        self.config = context.config.warm_start
        self.extras = tuple(kind for kind in ("normals", "depth") if getattr(self.config, kind) > 0)
        self.batch = self.config.batch
        self.local = local_batch(self.batch, "warm_start.batch")
        self.length = round(self.config.kimg * 1000)
        self.steps = 0
        z_dim = context.config.generator.z_dim
        self.table = LatentTable(pictures, z_dim, self.config.lr_latent, (0.5, 0.99), context.device)
        _same_everywhere(self.table)
        self.updater = Updater(
            "generator",
            context.models.generator.parameters(),
            context.guard,
            lr=self.config.lr,
            betas=context.config.adam_betas,
        )

    def step(self, batch: Batch, images: int) -> None:
        context, config = self.context, self.context.config
        now = moment(config.schedule, 0, config.batch)
        z = self.table.rows(batch.index)
        swapped = torch.rand(len(batch), 1, device=context.device) < now.swap_probability
        conditioning = torch.where(swapped, batch.camera.roll(1, 0), batch.camera)
        for part, share in passes(len(batch), config.batch_per_pass):
            terms = self._terms(batch, part, z[part], conditioning[part], now.raw_resolution)
            (total(terms, context.curves) * share).backward()
        if self.updater.apply():  # a latent's gradient is finite where the mapping's is
            self.table.update(batch.index, z.grad)
        self.steps += 1
        if self.steps % _STANDARDISE_EVERY == 0:
            self.table.standardise()
        decay = average_decay(config.ema_kimg, config.ema_rampup, images, self.batch)
        update_average(context.models.average, context.models.generator, decay)

    def _terms(
        self, batch: Batch, part: slice, z: Tensor, conditioning: Tensor, raw_resolution: int
    ) -> list[Term]:
        config, generator = self.config, self.context.models.generator
        ws = generator.map(z, conditioning, update_average=True)
        field = generator.field(generator.planes(ws, noise_mode="random"))
        want = Want(samples=True, normals=config.normals > 0)
        rendering = generator.synthesise(
            ws, batch.camera[part], field=field, raw_resolution=raw_resolution, want=want
        )
        image = batch.image[part].float() / 127.5 - 1
        classes = one_hot(batch.mask[part], rendering.mask.shape[1])
        terms = image_terms(config.image, config.perceptual, rendering, image)
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
            "table": self.table.state_dict(),
            "generator_optimiser": self.updater.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        self.table.load_state_dict(state["table"])
        self.updater.load_state_dict(state["generator_optimiser"])


def normalise(z: Tensor) -> Tensor:
    """Rows (n, d) at norm sqrt(d), where standard normal rows of many numbers lie."""
    return functional.normalize(z, dim=1) * z.shape[1] ** 0.5


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


def _gather(index: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of all processes, with the gradient of the mean over all of them."""
    world = distributed.world_size()
    if world == 1:
        return index, gradient
    indices = [torch.empty_like(index) for _ in range(world)]
    gradients = [torch.empty_like(gradient) for _ in range(world)]
    torch.distributed.all_gather(indices, index)
    torch.distributed.all_gather(gradients, gradient)
    return torch.cat(indices), torch.cat(gradients) / world


def _same_everywhere(table: LatentTable) -> None:
    """Every process starts from the first one's latents."""
    if distributed.world_size() > 1:
        torch.distributed.broadcast(table.latents, 0)
