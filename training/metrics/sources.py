"""What is measured: pictures with masks, from a generator, from a data set, or from nowhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import GeneratorConfig, SphereConfig, TrainConfig
from training.curves import Curves
from training.generator import Generator, Want
from training.metrics.portrait_set import PortraitSet, to_float
from training.phases import Context, SpherePhase, build_models
from training.scene import device_of
from training.updates import FiniteGuard

_BATCH = 8
_UNTRAINED_STEPS = 60  # of the sphere initialisation: spheres are there after some tens


@dataclass(frozen=True)
class Portraits:
    """n pictures and what their maker says is where in them."""

    images: Tensor  # (n, 3, H, H) in [-1, 1]
    masks: Tensor  # (n, H, H) int64 classes

    def __len__(self) -> int:
        return len(self.images)


def true_portraits(pictures: PortraitSet) -> Portraits:
    """Of a data set, as they are."""
    return Portraits(to_float(pictures.images), pictures.masks.long())


@torch.no_grad()
def generated_portraits(
    generator: Generator, cameras: Tensor, *, seed: int = 0, truncation: float = 1.0
) -> Portraits:
    """One portrait per camera (n, 25), which the mapping is told too; latents of a seed of their own."""
    device = device_of(generator)
    source = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(cameras), generator.config.z_dim, generator=source)
    images, masks = [], []
    for z, camera in zip(latents.split(_BATCH), cameras.split(_BATCH), strict=True):
        camera = camera.to(device)
        ws = generator.map(z.to(device), camera, truncation_psi=truncation)
        view = generator.synthesise(ws, camera, want=Want(), deterministic=True)
        images.append(view.image.clamp(-1, 1).cpu())
        masks.append(view.mask.argmax(1).cpu())
    return Portraits(torch.cat(images), torch.cat(masks))


def noise_portraits(count: int, resolution: int, classes: int, seed: int = 0) -> Portraits:
    """What has nothing to do with portraits: every pixel's colour and class is drawn by itself."""
    source = torch.Generator().manual_seed(seed)
    shape = (count, resolution, resolution)
    images = torch.rand(count, 3, *shape[1:], generator=source) * 2 - 1
    return Portraits(images, torch.randint(classes, shape, generator=source))


def random_generator(config: GeneratorConfig, seed: int = 0) -> Generator:
    """Fresh weights of the same sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Generator(config).eval().requires_grad_(False)


def untrained_generator(config: GeneratorConfig, seed: int = 0, steps: int = _UNTRAINED_STEPS) -> Generator:
    """What training starts from: fresh weights whose signed distances are those of a sphere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sphere = SphereConfig(steps=steps, batch=2, points=1024)
        run = TrainConfig(generator=config, sphere=sphere)
        device = torch.device("cpu")
        context = Context(run, build_models(run, device), Curves(), FiniteGuard(steps), device)
        phase = SpherePhase(context)
        for step in range(steps):
            phase.step(None, step * sphere.batch)
        phase.finish()
        return context.models.average.eval().requires_grad_(False)
