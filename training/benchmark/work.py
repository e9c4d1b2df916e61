"""What the project is for, as work that can be timed: views, training steps, an edit's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from datasets.masked_images import Batch
from training.acceleration import Acceleration, accelerate, open_accelerated
from training.adversarial import AdversarialPhase, draw_scenes
from training.config import TrainConfig
from training.curves import Curves
from training.editing.region import EditRequest
from training.editing.settings import EditSettings
from training.generator import Generator
from training.graphs import Recorder
from training.phases import Context, build_models
from training.pictures import look, ray_chunk
from training.scene import camera_at, class_map, latent_of_seed, scene_of, ws_of_latent
from training.schedules import moment
from training.updates import FiniteGuard
from training.views import real_views

_STEPS = 16  # after so many, R1 and density regularisation have been due as often as they are on average


@dataclass(frozen=True)
class Work:
    """Something to time."""

    name: str
    run: Callable[[], object]
    items: int = 1  # pictures that one run makes or trains on
    counted: Callable[[], object] | None = (
        None  # the same work, where operations of ``run`` cannot be counted
    )


def views(
    config: TrainConfig, device: str, raw_resolutions: tuple[int, ...], acceleration: Acceleration
) -> Iterator[Work]:
    """A view of an untrained generator, everything included: mapping, planes, rendering, super-resolution."""
    generator = accelerate(Generator(config.generator).eval().requires_grad_(False).to(device), acceleration)
    camera = camera_at(generator, 0.0, 0.0)
    z, chunk = latent_of_seed(generator, 0), ray_chunk(camera.device)

    def view(resolution: int) -> None:
        with torch.no_grad():
            ws = generator.map(z, camera)
            generator.synthesise(ws, camera, raw_resolution=resolution, deterministic=True, chunk=chunk)

    for resolution in raw_resolutions:
        side = config.generator.resolution
        yield Work(f"view {side} px, raw {resolution}", lambda resolution=resolution: view(resolution))


def training_steps(config: TrainConfig, device: str, *, batch: int) -> Iterator[Work]:
    """The parts of a step, on random pictures: their gradients, not the optimiser's update."""
    config = replace(config, batch=batch, schedule=replace(config.schedule, blur_kimg=0))
    models = build_models(config, torch.device(device))
    phase = AdversarialPhase(Context(config, models, Curves(), FiniteGuard(1), torch.device(device)))
    size = config.generator
    pictures = Batch(
        image=torch.randint(0, 256, (batch, 3, size.resolution, size.resolution), dtype=torch.uint8),
        mask=torch.randint(0, size.parts, (batch, size.resolution, size.resolution), dtype=torch.uint8),
        camera=camera_at(models.generator, 0.0, 0.0).cpu().expand(batch, -1),
        index=torch.arange(batch),
        # what a recipe that keeps reconstructions compares
        depth=size.camera.radius + torch.rand(batch, 1, size.resolution, size.resolution) / 4,
        normals=torch.zeros(batch, 3, size.resolution, size.resolution),
    ).to(device)
    now = moment(config.schedule, 100_000, batch)
    reals = real_views(pictures.image, pictures.mask, size.parts, now.raw_resolution)
    scenes = draw_scenes(size.z_dim, pictures.camera, now.swap_probability)

    def generator_step() -> None:
        with phase.frozen_judges():
            phase.generator_gradients(scenes, now, pictures)
        models.generator.zero_grad()

    def discriminator_step() -> None:
        phase.discriminator_gradients(reals, fakes, pictures.camera, now)
        zero()

    def r1_step() -> None:
        phase.r1_gradients(reals, pictures.camera, now)
        zero()

    def parser_step() -> None:
        phase.parsing.gradients(reals)
        models.parser.zero_grad()

    def zero() -> None:
        models.discriminator.zero_grad()
        models.discriminator_mask.zero_grad()

    yield Work(f"generator step, batch {batch}", generator_step, batch)
    fakes = phase.generated(scenes, now)
    yield Work(f"discriminator steps, batch {batch}", discriminator_step, batch)
    yield Work(f"R1 of both discriminators, batch {batch}", r1_step, batch)
    if phase.parsing:
        yield Work(f"parser step, batch {batch}", parser_step, batch)
    if device.startswith("cuda"):
        yield from _whole_steps(config, device, pictures)


def _whole_steps(config: TrainConfig, device: str, pictures: Batch) -> Iterator[Work]:
    """Steps as training makes them, with updates and what is due now and then: from Python, and recorded."""
    kimg = 100 * max(1.0, config.schedule.swap_kimg)  # all schedules are at their ends

    def steps_of(recorder: Recorder) -> Callable[[], None]:
        models = build_models(config, torch.device(device))
        context = Context(config, models, Curves(), FiniteGuard(1), torch.device(device), recorder)
        phase = AdversarialPhase(context)

        def steps() -> None:
            with recorder.stream():
                for _ in range(_STEPS):
                    phase.step(pictures, round(1000 * kimg))

        return steps

    what, items = f"{_STEPS} whole steps, batch {len(pictures)}", _STEPS * len(pictures)
    plain, recorded = steps_of(Recorder()), steps_of(Recorder(device, enabled=True))
    yield Work(what, plain, items)
    for _ in range(3):  # until all that is due once in _STEPS is recorded
        recorded()
    yield Work(f"{what}, recorded", recorded, items, plain)


def edit_steps(
    network: Path,
    prior: str,
    controlnet: str | None,
    settings: EditSettings,
    device: str,
    acceleration: Acceleration,
) -> Iterator[Work]:
    """Steps of an edit that makes another class of the largest one; every second one distils normals too."""
    # here, so that a view's memory does not count libraries that only edits load
    from training.editing.optimise import EditOptimiser
    from training.prior import load_prior, quickest_predictions

    generator = open_accelerated(network, device, acceleration)
    with torch.no_grad():
        scene = scene_of(generator, ws_of_latent(generator, latent_of_seed(generator, 0), 0.7))
        camera = camera_at(generator, 0.0, 0.0)
        rendered = class_map(look(scene, camera))[0]
    counts = torch.bincount(rendered.flatten(), minlength=generator.parts)
    counts[0] = 0  # the background
    largest, absent = int(counts.argmax()), int(counts[1:].argmin()) + 1
    request = EditRequest(
        torch.where(rendered == largest, absent, rendered), rendered, camera, (largest, absent)
    )
    predictions = quickest_predictions(device, settings.bfloat16)
    loaded = load_prior(prior, controlnet, device=device, predictions=predictions)

    def steps_of(settings: EditSettings) -> Callable[[], None]:
        sentences = "a person with a hat", "a person"
        optimiser = EditOptimiser(scene, loaded, request, *sentences, settings, None, acceleration)

        def two_steps() -> None:
            optimiser.step(0)
            optimiser.step(1)

        return two_steps

    plain = steps_of(replace(settings, cuda_graphs=False))
    yield Work("edit, two steps", plain, 2)
    if device.startswith("cuda") and settings.cuda_graphs is not False and not acceleration.compile:
        recorded = steps_of(replace(settings, cuda_graphs=True))
        for _ in range(3):  # until both are recorded
            recorded()
        yield Work("edit, two steps, recorded", recorded, 2, plain)
