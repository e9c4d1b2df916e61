"""A generator and judges small enough to be run in a moment; none of them has learnt anything.

Fixtures for a conftest.py, which imports them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_generator import TINY_GENERATOR
from training.generator import Generator
from training.judges.clip import ClipConfig, PortraitClip, TowerConfig
from training.judges.identity import IdentityConfig, IdentityNet
from training.judges.reader import Reader, ReaderConfig

WORDS = ("a", "person", "with", "red", "blue", "hair", "wearing", "hat", ",")


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(3)
    return Generator(TINY_GENERATOR).eval().requires_grad_(False)


@pytest.fixture
def network(generator: Generator, tmp_path: Path) -> Path:
    """The same, as a file."""
    path = tmp_path / "network.safetensors"
    generator.save(path)
    return path


@pytest.fixture
def clip() -> PortraitClip:
    torch.manual_seed(0)
    config = ClipConfig(8, 16, 8, TowerConfig(16, 1, 2), TowerConfig(16, 1, 2), length=10)
    return PortraitClip(config, WORDS).eval()


@pytest.fixture
def reader() -> Reader:
    torch.manual_seed(0)
    return Reader(ReaderConfig(resolution=16, widths=(8, 16), groups=4)).eval()


@pytest.fixture
def identity() -> IdentityNet:
    torch.manual_seed(0)
    return IdentityNet(IdentityConfig(resolution=16, widths=(8, 8), groups=4, dim=6)).eval()
