"""A generator, a prior and fields that are small enough to be understood by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.tiny_generator import TINY_GENERATOR
from training.field import FieldValues
from training.generator import Generator
from training.rendering.cameras import frontal_camera


@pytest.fixture
def generator() -> Generator:
    """Random weights, 16 x 16 pictures, six classes."""
    torch.manual_seed(3)
    config = replace(TINY_GENERATOR, labels="catmask-hq")
    generator = Generator(config).eval().requires_grad_(False)
    generator.decoder.part_shapes.bias2.copy_(torch.linspace(0.05, -0.05, generator.parts)[:, None])
    return generator


@pytest.fixture
def camera() -> Tensor:
    return frontal_camera()


@dataclass(frozen=True)
class Prediction:
    conditional: Tensor
    unconditional: Tensor


class FakePrior:
    """Knows one picture per prompt: its score pulls every latent towards that picture.

    Latents are pictures at 4 x 4; the text embedding of a prompt is a colour; e_y is the exact noise of "the
    clean latents are this colour", e_0 that of grey.
    """

    COLOURS = {"red": (0.8, -0.8, -0.8), "blue": (-0.8, -0.8, 0.8)}

    def __init__(self) -> None:
        self.alphas_cumprod = torch.linspace(0.999, 0.01, 100)
        self.seen_conditions: list[Tensor] = []

    def encode(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(images, 4)

    def embed(self, prompts: list[str]) -> Tensor:
        colours = [
            next((c for name, c in self.COLOURS.items() if name in prompt), (0.0, 0.0, 0.0))
            for prompt in prompts
        ]
        return torch.tensor(colours)[:, None]

    def negative_prompt(self, normals: bool) -> str:
        return ""

    def condition(self, masks: Tensor, labels) -> Tensor:
        palette = torch.tensor(labels.palette, dtype=torch.float32) / 255
        return palette[masks].permute(0, 3, 1, 2)

    def predict_noise(self, latents, t, text, condition, *, guidance_scale, negative):
        if condition is not None:
            self.seen_conditions.append(condition)
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)

        def noise_of(colour: Tensor) -> Tensor:
            return (latents - alpha.sqrt() * colour[:, 0, :, None, None]) / (1 - alpha).sqrt()

        return Prediction(noise_of(text), noise_of(negative))


@pytest.fixture
def prior() -> FakePrior:
    return FakePrior()


class Balls:
    """A ball per class but the background, which is everything outside a big ball.

    The global signed distance is the union of the balls; ``shift`` is a learnable number added to all
    of them, and ``grey`` the colour everywhere.
    """

    def __init__(self, centres, radii, shift: Tensor, grey: Tensor) -> None:
        self.centres = torch.tensor(centres)
        self.radii = torch.tensor(radii)
        self.shift = shift
        self.grey = grey

    def part_sdf(self, points: Tensor) -> Tensor:
        balls = (points[..., None, :] - self.centres).norm(dim=-1) - self.radii + self.shift
        wall = 0.6 - points.norm(dim=-1, keepdim=True)
        return torch.cat([wall, balls], dim=-1)

    def sdf(self, points: Tensor) -> Tensor:
        return self.part_sdf(points)[..., 1:].amin(-1, keepdim=True)

    def density(self, sdf: Tensor) -> Tensor:
        return torch.sigmoid(-sdf / 0.01) / 0.01

    def query(self, points: Tensor, *, colour: bool, parts: bool) -> FieldValues:
        sdf = self.sdf(points)
        return FieldValues(
            sdf=sdf,
            density=self.density(sdf),
            colour=self.grey.expand(*points.shape[:-1], 3) if colour else None,
            part_sdf=self.part_sdf(points) if parts else None,
        )


def _balls(grey: float, learnable: bool) -> Balls:
    """Class 1 in the middle (the head), class 2 above it (the hair)."""
    return Balls(
        [[0.0, 0.0, 0.0], [0.0, 0.25, 0.0]],
        [0.2, 0.1],
        torch.zeros((), requires_grad=learnable),
        torch.tensor(grey, requires_grad=learnable),
    )


@pytest.fixture
def frozen_balls() -> Balls:
    return _balls(0.25, learnable=False)


@pytest.fixture
def learned_balls() -> Balls:
    return _balls(0.75, learnable=True)
