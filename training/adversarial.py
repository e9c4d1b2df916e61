"""Phase (b): the generator against two discriminators, of pictures and of pictures with masks.

A step is: the generator's losses; every few steps, the regularisation of its density; then both
discriminators on the pictures that the generator has just made, which are therefore rendered once; every few
steps, R1.

After a warm start, a share of the batch can stay reconstructions of its pictures (``warm_start.keep``), as in
Larsen et al. 2016: their masks and surfaces hold the geometry while the discriminators sharpen all pictures.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.masked_images import Batch
from dnnlib.errors import UserError
from training import augment, losses, recompute
from training.config import TrainConfig
from training.generator import Want
from training.growing import coarse_parts_frozen
from training.parsing import Parsing
from training.phases import Context, Term, geometry_terms, local_batch, passes, total
from training.reconstruction import Reconstruction
from training.schedules import Moment, average_decay, lowered_beta, moment
from training.updates import Updater, frozen, update_average
from training.views import Views, fake_views, prepare, real_views


@dataclass(frozen=True)
class Scenes:
    """What N scenes are made from."""

    z: Tensor  # (N, z_dim)
    camera: Tensor  # (N, 25) the view
    conditioning: Tensor  # (N, 25) the camera that the mapping is told: the view's, or another picture's

    def __getitem__(self, part: slice) -> Scenes:
        return Scenes(self.z[part], self.camera[part], self.conditioning[part])

    def __len__(self) -> int:
        return len(self.z)


def draw_scenes(z_dim: int, camera: Tensor, swap_probability: float) -> Scenes:
    """Latents for the given views (N, 25).

    A conditioning camera is its neighbour's with the given probability, so that the mapping cannot rely on it
    for what the view shows.
    """
    z = torch.randn(len(camera), z_dim, device=camera.device)
    swapped = torch.rand(len(camera), 1, device=camera.device) < swap_probability
    return Scenes(z, camera, torch.where(swapped, camera.roll(1, 0), camera))


def _check_kept(keep: float, local: int, per_pass: int) -> None:
    """Every pass of every process reconstructs the same share of its pictures: less or more in some would be
    another share of the batch."""
    for part, _ in passes(local, per_pass):
        count = part.stop - part.start
        if abs(keep * count - round(keep * count)) > 1e-6:
            raise UserError(
                f"warm_start.keep={keep:g} of the {count} pictures that a process takes at a time is "
                f"{keep * count:g}: change it, the batch, batch_per_pass or the number of processes, so that "
                "it is a whole number"
            )


class AdversarialPhase:
    """See the module. Losses by name and weight: :class:`training.config.LossConfig`."""

    name = "adversarial"

    def __init__(self, context: Context) -> None:
        self.context = context
        config: TrainConfig = context.config
        self.config = config
        self.batch = config.batch
        self.length = round(config.kimg * 1000)
        self.local = local_batch(config.batch, "batch")
        self.steps = 0
        self.strength = augment.Strength(config.augment, context.device)
        self.reconstruction = Reconstruction(context) if config.warm_start.keep else None
        if self.reconstruction:
            _check_kept(config.warm_start.keep, self.local, config.batch_per_pass)
        self.parsing = Parsing(context) if config.loss.mask_parsing else None
        self.extras = self.reconstruction.extras if self.reconstruction else ()
        self.deterministic = False  # no random ray samples and noise: for tests that compare batches
        models, guard, betas = context.models, context.guard, config.adam_betas
        self.generator_updater = Updater(
            "generator",
            models.generator.parameters(),
            guard,
            lr=config.lr_generator,
            betas=betas,
            lazy_every=config.loss.density_regularisation_every if config.loss.density_regularisation else 0,
        )
        self.discriminator_updaters = [
            Updater(
                what,
                network.parameters(),
                guard,
                lr=config.lr_discriminator,
                betas=betas,
                lazy_every=config.loss.r1_every if config.loss.gamma else 0,
            )
            for what, network in (
                ("discriminator", models.discriminator),
                ("mask discriminator", models.discriminator_mask),
            )
        ]

    def step(self, batch: Batch, images: int) -> None:
        """One step with this process's share of real pictures, after ``images`` images of this phase."""
        config, models, run = self.config, self.context.models, self.context.recorder.run
        now = moment(config.schedule, images, config.batch)
        scenes = draw_scenes(config.generator.z_dim, batch.camera, now.swap_probability)
        now = replace(now, swap_probability=0.0)  # it is used up, and changes at every step
        if images < config.schedule.generator_delay_kimg * 1000:
            fakes = self.generated(scenes, now)
        else:
            growing = images < config.schedule.grow_kimg * 1000
            which = "grown " if growing else ""  # a recorded step knows what learns
            with coarse_parts_frozen(models.generator) if growing else nullcontext():
                fakes = run(which + "generator", self._generator_step, scenes, now, batch)
                if self._due(config.loss.density_regularisation_every, config.loss.density_regularisation):
                    others = replace(scenes, z=torch.randn_like(scenes.z))
                    run(which + "density", self._density_step, others)
            if config.schedule.beta:
                beta = models.generator.decoder.sigmoid_beta.data
                beta.copy_(lowered_beta(beta, config.schedule, config.batch))
        reals = real_views(batch.image, batch.mask, config.generator.parts, now.raw_resolution)
        run("discriminators", self._discriminators_step, reals, fakes, batch.camera, now)
        self.strength.advance(config.batch)
        if self.parsing:
            self.parsing.grow(config.batch)
        if self._due(config.loss.r1_every, config.loss.gamma):
            run("r1", self._r1_step, reals, batch.camera, now)
        decay = average_decay(config.ema_kimg, config.ema_rampup, images, config.batch)
        update_average(models.average, models.generator, decay)
        self.steps += 1

    def finish(self) -> None:
        pass

    def _generator_step(self, scenes: Scenes, now: Moment, batch: Batch) -> list[Views]:
        with self.frozen_judges():
            fakes = self.generator_gradients(scenes, now, batch)
            self.generator_updater.apply()
            if self.reconstruction:
                self.reconstruction.updater.apply()
        return fakes

    def _density_step(self, scenes: Scenes) -> None:
        self.density_gradients(scenes)
        self.generator_updater.apply()

    def _discriminators_step(self, reals: Views, fakes: list[Views], camera: Tensor, now: Moment) -> None:
        self.discriminator_gradients(reals, fakes, camera, now)
        self._apply_discriminators()
        if self.parsing:
            self.parsing.learn(reals)

    def _r1_step(self, reals: Views, camera: Tensor, now: Moment) -> None:
        self.r1_gradients(reals, camera, now)
        self._apply_discriminators()

    def frozen_judges(self) -> AbstractContextManager[None]:
        """No gradients for the networks that judge the generator, while it learns from them."""
        models = self.context.models
        judges = (models.discriminator, models.discriminator_mask, models.parser)
        return frozen(*(judge for judge in judges if judge is not None))

    @torch.no_grad()
    def generated(self, scenes: Scenes, now: Moment) -> list[Views]:
        """What the generator makes of the scenes, pass by pass."""
        generator = self.context.models.generator
        fakes = []
        for part, _ in passes(len(scenes), self.config.batch_per_pass):
            some = scenes[part]
            rendering = generator.synthesise(
                generator.map(some.z, some.conditioning),
                some.camera,
                raw_resolution=now.raw_resolution,
                noise_mode="random",
                chunk=self.config.ray_chunk or None,
            )
            fakes.append(fake_views(rendering))
        return fakes

    def generator_gradients(self, scenes: Scenes, now: Moment, batch: Batch | None = None) -> list[Views]:
        """Adds the gradients of the generator's losses; returns what it made, without graph, pass by pass.

        ``batch``: the pictures of the scenes' cameras, wanted only where some are to be reconstructed.
        """
        fakes = []
        for part, share in passes(len(scenes), self.config.batch_per_pass):
            views, terms = self._generator_terms(scenes[part], now, batch[part] if batch else None)
            (total(terms, self.context.curves) * share).backward()
            fakes.append(views.detach())
        return fakes

    def _generator_terms(
        self, scenes: Scenes, now: Moment, batch: Batch | None = None
    ) -> tuple[Views, list[Term]]:
        models, config, warm_start = self.context.models, self.config.loss, self.config.warm_start
        generator = models.generator
        z, posterior = scenes.z, None
        if self.reconstruction:
            kept = batch[: round(warm_start.keep * len(batch))]
            posterior = self.reconstruction.encode(kept)
            z = torch.cat([posterior.sample(), z[len(kept) :]])
        ws = generator.map(z, scenes.conditioning, update_average=True)
        noise_mode = "const" if self.deterministic else "random"
        field = generator.field(generator.planes(ws, noise_mode=noise_mode))
        rendering = generator.synthesise(
            ws,
            scenes.camera,
            field=field,
            raw_resolution=now.raw_resolution,
            want=Want(
                samples=True,
                parts=config.part_colour > 0,
                normals=posterior is not None and warm_start.normals > 0,
            ),
            deterministic=self.deterministic,
            chunk=self.config.ray_chunk or None,
            checkpointing=self.config.checkpointing,
        )
        views = fake_views(rendering)
        shown = self._shown(views, now)
        again = self.config.checkpointing
        inputs = shown.image, shown.image_raw, scenes.camera
        logits = recompute.call(models.discriminator, *inputs, again=again)
        terms = [Term("generator/image", 1.0, losses.generator_adversarial(logits))]
        if config.mask_adversarial:
            # the mask must follow the picture, not the picture the mask: RGB is detached here
            colourless = Views(shown.image.detach(), shown.image_raw.detach(), shown.mask, shown.mask_raw)
            inputs = *self._masked(colourless), scenes.camera
            logits = recompute.call(models.discriminator_mask, *inputs, again=again)
            terms.append(
                Term("generator/mask", config.mask_adversarial, losses.generator_adversarial(logits))
            )
        if self.parsing:
            terms += self.parsing.terms(views)
        if posterior is not None:
            fit = self.reconstruction.terms(rendering, posterior, kept)
            fit += self.reconstruction.aggregate_terms(posterior)
            terms += [Term(term.name, warm_start.keep_weight * term.weight, term.value) for term in fit]
            if warm_start.keep_features:
                value = self._feature_distance(views, kept, now)
                terms.append(Term("fit/features", warm_start.keep_features, value))
        terms += geometry_terms(config, field, rendering.samples, self.config.ray_chunk)
        if config.part_colour:
            value = losses.part_colour(rendering.part_images, rendering.image_raw, rendering.mask_raw)
            terms.append(Term("generator/part_colour", config.part_colour, value))
        return views, terms

    def _feature_distance(self, views: Views, kept: Batch, now: Moment) -> Tensor:
        """How far the first views are from the pictures that they reconstruct, as the image discriminator
        sees them (Larsen et al. 2016, equation 8): what it looks for is what blur lacks."""
        reals = real_views(kept.image, kept.mask, self.config.generator.parts, now.raw_resolution)
        fakes, reals = (
            prepare(_part(some, slice(len(kept))), blur_share=now.blur, augmentation=None)
            for some in (views, reals)
        )
        discriminator = self.context.models.discriminator
        with torch.no_grad():
            wanted = discriminator.features(reals.image, reals.image_raw)
        return losses.feature_matching(discriminator.features(fakes.image, fakes.image_raw), wanted)

    def density_gradients(self, scenes: Scenes) -> None:
        """Adds the gradients of the lazy density regularisation."""
        config, generator = self.config.loss, self.context.models.generator
        for part, share in passes(len(scenes), self.config.batch_per_pass):
            some = scenes[part]
            field = generator.field(
                generator.planes(generator.map(some.z, some.conditioning), noise_mode="random")
            )
            points, nearby = losses.nearby_points(
                len(some),
                config.density_regularisation_points,
                box_warp=self.config.generator.camera.box_warp,
                distance=config.density_regularisation_distance,
                device=some.z.device,
            )
            density = field.density(field.sdf(torch.cat([points, nearby], dim=1)))
            value = losses.density_smoothness(*density.chunk(2, dim=1))
            weight = config.density_regularisation * config.density_regularisation_every
            (total([Term("shape/density_smoothness", weight, value)], self.context.curves) * share).backward()

    def discriminator_gradients(self, reals: Views, fakes: list[Views], camera: Tensor, now: Moment) -> None:
        """Adds the gradients of both discriminators on real and generated pictures."""
        curves = self.context.curves
        for (part, share), fake in zip(passes(len(camera), self.config.batch_per_pass), fakes, strict=True):
            shown_fake = self._shown(fake, now)
            shown_real = self._shown(_part(reals, part), now)
            loss = 0.0
            for name, network, inputs_fake, inputs_real in self._judges(shown_fake, shown_real):
                logits_fake = network(*inputs_fake, camera[part])
                logits_real = network(*inputs_real, camera[part])
                if name == "image":
                    self.strength.observe(logits_real)
                curves.add(f"discriminator/{name}_real_sign", logits_real.sign())
                terms = [
                    Term(f"discriminator/{name}_fake", 1.0, losses.discriminator_fake(logits_fake)),
                    Term(f"discriminator/{name}_real", 1.0, losses.discriminator_real(logits_real)),
                ]
                loss = loss + total(terms, curves)
            (loss * share).backward()
        curves.add("augment/strength", self.strength.value)

    def r1_gradients(self, reals: Views, camera: Tensor, now: Moment) -> None:
        """Adds the gradients of the lazy R1 penalty of both discriminators, on final and raw pictures."""
        config = self.config.loss
        for part, share in passes(len(camera), self.config.batch_per_pass):
            leaves = Views(*(x[part].detach().requires_grad_() for x in _tensors(reals)))
            shown = self._shown(leaves, now)
            loss = 0.0
            for name, network, inputs, _ in self._judges(shown, shown):
                seen = (leaves.image, leaves.image_raw)
                if name == "mask":
                    seen += (leaves.mask, leaves.mask_raw)
                penalty = losses.r1_per_image(network(*inputs, camera[part]), seen).mean()
                gamma = config.gamma * (config.gamma_mask if name == "mask" else 1.0)
                term = Term(f"discriminator/{name}_r1", gamma / 2 * config.r1_every, penalty)
                loss = loss + total([term], self.context.curves)
            (loss * share).backward()

    def _judges(self, fake: Views, real: Views) -> list[tuple]:
        """(name, network, what it is shown of the fakes, and of the real ones) of both discriminators."""
        models = self.context.models
        judges = [
            ("image", models.discriminator, (fake.image, fake.image_raw), (real.image, real.image_raw)),
        ]
        if self.config.loss.mask_adversarial:
            judges.append(("mask", models.discriminator_mask, self._masked(fake), self._masked(real)))
        return judges

    def _masked(self, views: Views) -> tuple[Tensor, Tensor]:
        """What the mask discriminator is shown of (augmented) views."""
        config = self.config.loss
        return views.for_mask_judge(sharpness=config.mask_sharpness, colour_blur=config.mask_colour_blur)

    def _shown(self, views: Views, now: Moment) -> Views:
        drawn = None
        if self.strength.enabled:
            drawn = augment.draw(
                len(views.image), self.strength.value, now.raw_resolution, views.image.device
            )
        return prepare(views, blur_share=now.blur, augmentation=drawn, mask_noise=now.mask_noise)

    def _apply_discriminators(self) -> None:
        for updater in self.discriminator_updaters:
            updater.apply()

    def _due(self, every: int, weight: float) -> bool:
        return bool(weight) and self.steps % every == 0

    def state_dict(self) -> dict:
        return {
            "steps": self.steps,
            "strength": self.strength.state_dict(),
            "generator_optimiser": self.generator_updater.state_dict(),
            **({"parsing": self.parsing.state_dict()} if self.parsing else {}),
            **(self.reconstruction.state_dict() if self.reconstruction else {}),
            "discriminator_optimisers": [updater.state_dict() for updater in self.discriminator_updaters],
        }

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        self.strength.load_state_dict(state["strength"])
        self.generator_updater.load_state_dict(state["generator_optimiser"])
        if self.reconstruction:
            self.reconstruction.load_state_dict(state)
        if self.parsing and "parsing" in state:
            self.parsing.load_state_dict(state["parsing"])
        for updater, saved in zip(
            self.discriminator_updaters, state["discriminator_optimisers"], strict=True
        ):
            updater.load_state_dict(saved)


def _tensors(views: Views) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return views.image, views.image_raw, views.mask, views.mask_raw


def _part(views: Views, part: slice) -> Views:
    return Views(*(x[part] for x in _tensors(views)))
