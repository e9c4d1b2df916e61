"""What a configuration costs: parameters of every network and arithmetic of one view."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.config import TrainConfig
from training.generator import CAMERA_DIM
from training.phases import build_models


def describe(config: TrainConfig) -> str:
    """A few lines: parameters, and GFLOP of a view in products and convolutions (two for a multiply-add).

    Networks are made of shapes without numbers, so that the published sizes cost nothing here.
    """
    with torch.device("meta"):
        models = build_models(config, torch.device("meta"))
        z, camera = torch.zeros(1, config.generator.z_dim), torch.zeros(1, CAMERA_DIM)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            models.average.synthesise(models.average.map(z, camera), camera)
    lines = [
        f"{name.replace('_', ' '):20s} {sum(p.numel() for p in module.parameters()) / 1e6:8.2f} M parameters"
        for name, module in models.named().items()
        if name != "average"
    ]
    return "\n".join([*lines, f"{'one view':20s} {counter.get_total_flops() / 1e9:8.2f} GFLOP, forward"])
