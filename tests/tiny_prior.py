"""A diffusion prior that is made in a moment, with random weights, for pictures of 16 x 16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.tiny_generator import TINY_GENERATOR
from training.generator import Generator
from training.prior.config import AutoencoderConfig, DiffusionConfig, PriorConfig, TextConfig
from training.prior.models import build_parts, save_parts

TINY_PRIOR = PriorConfig(
    resolution=16,
    autoencoder=AutoencoderConfig(channels=(8, 8, 16), groups=4),
    text=TextConfig(width=16, layers=1, heads=2, length=24),
    diffusion=DiffusionConfig(
        channels=(8, 16), attention=(False, True), heads=2, groups=4, condition_channels=(4, 4, 8)
    ),
)


def write_tiny_models(folder: Path, words: Sequence[str]) -> None:
    """network.safetensors and prior/, which knows ``words``: all that an edit needs, always the same."""
    torch.manual_seed(0)
    Generator(TINY_GENERATOR).save(folder / "network.safetensors")
    save_parts(build_parts(TINY_PRIOR, tuple(words)), folder / "prior", TINY_PRIOR, {})
