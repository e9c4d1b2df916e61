"""What a configuration costs: parameters of every network and arithmetic of one view."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.config import TrainConfig
from training.generator import CAMERA_DIM, Generator
from training.phases import build_models


def describe(config: TrainConfig) -> str:
    """A few lines: parameters, and GFLOP of a view in products and convolutions (two for a multiply-add)."""
    with torch.device("meta"):  # shapes without numbers, so that the published sizes cost nothing here
        models = build_models(config, torch.device("meta"))
    lines = [
        f"{name.replace('_', ' '):20s} {sum(p.numel() for p in module.parameters()) / 1e6:8.2f} M parameters"
        for name, module in models.named().items()
        if name != "average"
    ]
    flops = view_flops(models.average)
    return "\n".join([*lines, f"{'one view':20s} {flops / 1e9:8.2f} GFLOP, forward"])


def view_flops(generator: Generator) -> float:
    """Of image, mask and all that comes before them, for a generator on the meta device.

    Counted at two small raw resolutions r and continued: all that depends on r grows with the rays, r * r.
    """
    small, large = 4, 8
    counts = [_count_flops(generator, resolution) for resolution in (small, large)]
    per_ray = (counts[1] - counts[0]) / (large**2 - small**2)
    return counts[0] + per_ray * (generator.config.raw_resolution**2 - small**2)


@torch.no_grad()
def _count_flops(generator: Generator, raw_resolution: int) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        z, camera = torch.zeros(1, generator.config.z_dim), torch.zeros(1, CAMERA_DIM)
        generator.synthesise(generator.map(z, camera), camera, raw_resolution=raw_resolution)
    return counter.get_total_flops()
