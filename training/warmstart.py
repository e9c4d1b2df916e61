"""Optional phase between spheres and adversaries, for synthetic sets that come with depth and normals.

The generator is trained as the decoder of a variational autoencoder (:mod:`training.reconstruction`). Heads,
classes and surfaces are then there when the adversarial phase begins. That phase draws latents from the
standard normal, which is what the divergence term holds the encoder's latents to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.masked_images import Batch
from training.field import TriplaneField
from training.generator import Rendering, Want
from training.networks.encoder import Posterior
from training.phases import Context, Term, geometry_terms, local_batch, passes, total
from training.reconstruction import BETAS, Reconstruction
from training.schedules import average_decay, crossed, moment
from training.updates import Updater, frozen, update_average


class WarmStartPhase:
    """Trains generator and encoder; see :class:`training.config.WarmStartConfig`."""

    name = "warm_start"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config = context.config.warm_start
        self.reconstruction = Reconstruction(context)
        self.extras = self.reconstruction.extras
        self.batch = self.config.batch
        self.local = local_batch(self.batch, "warm_start.batch")
        self.length = round(self.config.kimg * 1000)
        self.steps = 0
        self.updater = Updater(
            "generator",
            context.models.generator.parameters(),
            context.guard,
            lr=self.config.lr,
            betas=BETAS,
        )

    def step(self, batch: Batch, images: int) -> None:
        context, config = self.context, self.context.config
        now = moment(config.schedule, 0, config.batch)
        swapped = torch.rand(len(batch), 1, device=context.device) < now.swap_probability
        conditioning = torch.where(swapped, batch.camera.roll(1, 0), batch.camera)
        alone = images < 1000 * self.config.encoder_kimg
        what, learn = ("encoder", self._learn_encoder) if alone else ("warm_start", self._learn)
        context.recorder.run(what, learn, batch, conditioning, now.raw_resolution)
        if self.config.beta:
            self._lower_beta((images + self.batch) / (1000 * self.config.beta_kimg))
        self.steps += 1
        decay = average_decay(config.ema_kimg, config.ema_rampup, images, self.batch)
        update_average(context.models.average, context.models.generator, decay)
        if crossed(images, images + self.batch, self.config.whiten_kimg):
            self.reconstruction.whiten(self.updater)

    def _learn(self, batch: Batch, conditioning: Tensor, raw_resolution: int) -> None:
        for part, share in passes(len(batch), self.context.config.batch_per_pass):
            terms = self._terms(batch[part], conditioning[part], raw_resolution)
            (total(terms, self.context.curves) * share).backward()
        self.updater.apply()
        self.reconstruction.updater.apply()

    def _learn_encoder(self, batch: Batch, conditioning: Tensor, raw_resolution: int) -> None:
        """The generator's latents of pictures, without a change to the generator: one that was trained before
        shows many people, and would unlearn them while the latents of a new encoder say nothing yet. They are
        to be standard normal together, as those are that this generator knows."""
        with frozen(self.context.models.generator):
            for part, share in passes(len(batch), self.context.config.batch_per_pass):
                some, cameras = batch[part], conditioning[part]
                _, _, posterior, terms = self._reconstructed(some, cameras, raw_resolution)
                terms += self.reconstruction.aggregate_terms(posterior)
                if self.config.dreams:
                    terms += self._dreamt(some.camera, cameras, raw_resolution)
                (total(terms, self.context.curves) * share).backward()
            self.reconstruction.updater.apply()

    def _dreamt(self, camera: Tensor, conditioning: Tensor, raw_resolution: int) -> list[Term]:
        """What the encoder reads in pictures of random latents."""
        generator = self.context.models.generator
        z = torch.randn(len(camera), self.context.config.generator.z_dim, device=camera.device)
        with torch.no_grad():
            ws = generator.map(z, conditioning)
            rendering = generator.synthesise(ws, camera, raw_resolution=raw_resolution, noise_mode="random")
        return self.reconstruction.dreamt_terms(z, rendering)

    def finish(self) -> None:
        """The adversarial phase goes on from the average, which is smoother than the last step's weights, and
        with latents that are standard normal, as those are that it draws."""
        if self.config.whiten_kimg and self.steps:
            self.reconstruction.whiten(self.updater)
        self.context.models.generator.load_state_dict(self.context.models.average.state_dict())

    @torch.no_grad()
    def _lower_beta(self, done: float) -> None:
        """Brings beta down geometrically while the share ``done`` of its time grows from 0 to 1.

        Fog lets far parts of space receive gradients, surfaces give colours a place: first the one, then the
        other.
        """
        first = self.context.config.generator.beta
        beta = first * (self.config.beta / first) ** min(1.0, done)
        self.context.models.generator.decoder.sigmoid_beta.fill_(beta)

    def _terms(self, batch: Batch, conditioning: Tensor, raw_resolution: int) -> list[Term]:
        field, rendering, _, terms = self._reconstructed(batch, conditioning, raw_resolution, learning=True)
        config = self.context.config
        return terms + geometry_terms(config.loss, field, rendering.samples, config.ray_chunk)

    def _reconstructed(
        self, batch: Batch, conditioning: Tensor, raw_resolution: int, learning: bool = False
    ) -> tuple[TriplaneField, Rendering, Posterior, list[Term]]:
        """The batch's pictures, encoded and rendered again, and what they lack. ``learning``: the generator
        does, which takes the average of w and the samples along the rays."""
        generator = self.context.models.generator
        posterior = self.reconstruction.encode(batch)
        ws = generator.map(posterior.sample(), conditioning, update_average=learning)
        field = generator.field(generator.planes(ws, noise_mode="random"))
        want = Want(samples=learning, normals=self.config.normals > 0)
        rendering = generator.synthesise(
            ws,
            batch.camera,
            field=field,
            raw_resolution=raw_resolution,
            want=want,
            chunk=self.context.config.ray_chunk or None,
        )
        return field, rendering, posterior, self.reconstruction.terms(rendering, posterior, batch)

    def state_dict(self) -> dict:
        return {
            "steps": self.steps,
            **self.reconstruction.state_dict(),
            "generator_optimiser": self.updater.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        self.reconstruction.load_state_dict(state)
        self.updater.load_state_dict(state["generator_optimiser"])
