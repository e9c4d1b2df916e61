"""One process of test_two_processes_give_the_gradients_of_one: a step on its share of a fixed batch."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from dnnlib import config as config_files
from torch_utils import distributed
from training.adversarial import AdversarialPhase, Scenes
from training.config import TrainConfig
from training.curves import Curves
from training.phases import Context, build_models
from training.rendering.cameras import sample_cameras
from training.schedules import moment
from training.updates import FiniteGuard
from training.views import Views


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    device = distributed.init("cpu")
    config = config_files.load(TrainConfig, folder / "config.yaml")
    torch.manual_seed(distributed.rank())  # the first process's networks must reach the others
    context = Context(config, build_models(config, device), Curves(), FiniteGuard(0), device)
    phase = AdversarialPhase(context)
    phase.deterministic = True

    torch.manual_seed(5)
    camera = sample_cameras(4)
    scenes = Scenes(torch.randn(4, config.generator.z_dim), camera, camera)
    shapes = ((3, 16), (3, 8), (config.generator.parts, 16), (config.generator.parts, 8))
    reals = Views(*(torch.rand(4, channels, side, side) * 2 - 1 for channels, side in shapes))

    mine = slice(distributed.rank(), None, distributed.world_size())  # dealt in turn, as the sampler does
    reals = Views(reals.image[mine], reals.image_raw[mine], reals.mask[mine], reals.mask_raw[mine])
    now = moment(config.schedule, 10**6, 4)
    fakes = phase.generator_gradients(scenes[mine], now)
    phase.discriminator_gradients(reals, fakes, camera[mine], now)
    phase.r1_gradients(reals, camera[mine], now)
    gradients = {}
    for name, module in context.models.named().items():
        distributed.all_reduce_mean_gradients(module.parameters())
        gradients |= {
            f"{name}.{k}": p.grad.contiguous() for k, p in module.named_parameters() if p.grad is not None
        }
    if distributed.is_main():
        save_file(gradients, folder / f"gradients-{distributed.world_size()}.safetensors")
    distributed.barrier()
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
