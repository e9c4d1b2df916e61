"""One process of test_processes_agree_and_resume_together: a run of all phases, whole and in two parts."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from dnnlib import config as config_files
from torch_utils import distributed
from training.config import TrainConfig
from training.loop import Trainer


def train(folder: Path, outdir: Path, kimg: float, resume: Path | None = None) -> Trainer:
    config = config_files.load(TrainConfig, folder / "config.yaml", [f"kimg={kimg}"])
    trainer = Trainer(config, outdir, torch.device("cpu"), resume)
    assert trainer.run()
    return trainer


def assert_alike(trainer: Trainer) -> None:
    """Every network is the same in all processes."""
    for name, module in trainer.context.models.named().items():
        for key, value in module.state_dict().items():
            all_of_them = [torch.empty_like(value) for _ in range(distributed.world_size())]
            dist.all_gather(all_of_them, value.contiguous())
            assert all(torch.equal(value, other) for other in all_of_them), f"{name}.{key}"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init("cpu")
    assert_alike(train(folder, folder / "whole", 0.008))
    train(folder, folder / "parts", 0.004)
    train(folder, folder / "parts", 0.008, resume=folder / "parts")
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
