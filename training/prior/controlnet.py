"""Trains a mask ControlNet for a diffusion model that stays as it is: Stable Diffusion 1.5, or a small prior.

The published ControlNets came without the code that trained them. This is the usual way (Zhang et al. 2023):
the ControlNet begins as a copy of the UNet's encoder whose outputs pass through zero convolutions, so that
at first it changes nothing, and learns to predict the noise together with the frozen UNet. Loop, loss weights
and noise are those of the small prior's training.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn
from tqdm import tqdm

from datasets.masked_images import Batch, MaskedImages, collate
from dnnlib import config as config_files
from dnnlib.errors import UserError
from dnnlib.files import make_folder, write_json
from training.prior.config import ControlNetConfig
from training.prior.diffusion import coarsened, controlled, snr_weights
from training.prior.grids import GUIDANCE, save_grid, to_tile
from training.prior.load import load_prior
from training.prior.loop import (
    CONFIG_FILE,
    Curves,
    Progress,
    StageTrainer,
    read_state,
    refuse_other_run,
    save_state,
)
from training.prior.prior import Prior
from training.schedules import crossed

NAME = "controlnet"  # of the stage, of its folder and of the module in it
_EMBEDDING = (16, 32, 96, 256)  # channels of the mask's embedding for an autoencoder of four levels
_LARGEST_TILE = 64  # pictures up to this side are enlarged in grids


def new_controlnet(prior: Prior) -> ControlNetModel:
    """A ControlNet for the UNet of ``prior``, that changes nothing yet."""
    levels = len(prior.vae.config.block_out_channels)
    if levels > len(_EMBEDDING):
        raise UserError(
            f"the base shrinks pictures {2 ** (levels - 1)} times; ControlNets here do so 8 times"
        )
    return ControlNetModel.from_unet(prior.unet, conditioning_embedding_out_channels=_EMBEDDING[:levels])


class ControlNetStage:
    """What the training loop needs to know: the loss of one batch.

    loss = mean_t w(t) |eps - e(z_t, t, caption, mask)|^2, as in :mod:`training.prior.diffusion`.
    """

    def __init__(self, config: ControlNetConfig, prior: Prior, data: MaskedImages) -> None:
        self.config = config
        self.prior = prior
        self.data = data
        self.weights = snr_weights(prior.alphas_cumprod, config.min_snr)
        self.readers = ThreadPoolExecutor(max(1, config.workers))

    def read(self, indices: list[int]) -> Batch:
        """These pictures with their masks and captions."""
        return collate(list(self.readers.map(self.data.__getitem__, indices)))

    def captions(self, batch: Batch) -> list[str]:
        return [caption or self.config.caption for caption in batch.caption or [""] * len(batch)]

    def losses(self, module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch drawn with ``generator``; 'loss' is what is minimised."""
        count, device = self.config.optimiser.batch, self.prior.device
        indices = torch.randint(len(self.data), (count,), generator=generator).tolist()
        batch = self.read(indices)
        t = torch.randint(self.prior.timesteps, (count,), generator=generator)
        dropped = torch.rand(count, generator=generator) < self.config.drop_caption
        coarse = torch.rand(count, generator=generator) < self.config.coarse_mask
        masks = torch.where(coarse.view(-1, 1, 1), coarsened(batch.mask, generator), batch.mask)
        with torch.no_grad():
            clean = self.prior.encode(batch.image.to(device).float() / 127.5 - 1)
            noise = torch.randn(clean.shape, generator=generator).to(device)
            captions = ["" if d else c for d, c in zip(dropped.tolist(), self.captions(batch), strict=True)]
            text = self.prior.embed(captions)
            condition = self.prior.condition(masks.to(device), self.data.labels)
        t = t.to(device)
        noisy = self.prior.add_noise(clean, noise, t)
        dtype = self.prior.dtype
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            seen = torch.ones(count, device=device, dtype=dtype)
            output = controlled(
                self.prior.unet, module[NAME], noisy.to(dtype), t, text.to(dtype), condition.to(dtype), seen
            )
        predicted = self.prior.as_noise(output.float(), noisy, t)
        error = (predicted - noise).square().mean(dim=(1, 2, 3))
        return {"loss": (self.weights[t] * error).mean(), "mse": error.detach().mean()}


class ControlNetTraining:
    """One run in ``outdir``: config.json, curves.jsonl, grids/, state.safetensors and controlnet/."""

    def __init__(
        self, config: ControlNetConfig, base: str, outdir: Path, resume: Path | None, device: str
    ) -> None:
        if not config.data:
            raise UserError("no pictures to learn from: give --data with images/, masks/ and dataset.json")
        refuse_other_run(outdir, resume)
        self.config = config
        self.base = base
        self.outdir = outdir
        half = torch.device(device).type == "cuda"  # bfloat16: gradients pass through the frozen UNet
        self.prior = load_prior(base, device=device, dtype=torch.bfloat16 if half else torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            controlnet = new_controlnet(self.prior)
        controlnet = controlnet.to(device).float().requires_grad_(True)
        if config.checkpointing:
            controlnet.enable_gradient_checkpointing()
            self.prior.unet.enable_gradient_checkpointing()
        self.data = MaskedImages(
            config.data,
            config.masks or None,
            config.labels,
            self.prior.image_size,
            mirror=config.mirror,
            extras=("caption",),
        )
        seconds = 60 * config.minutes
        self.trainer = StageTrainer(NAME, {NAME: controlnet}, config.optimiser, config.seed, seconds)
        if resume:
            state = read_state(resume)
            if state.get("stage") != NAME:
                raise UserError(f"{resume} is a state of another training, not of --controlnet-only")
            self.trainer.load_state(state["trainer"])
        self.prior.controlnet = self.trainer.average[NAME]
        make_folder(outdir)
        config_files.save(config, outdir / CONFIG_FILE)
        self.curves = Curves(outdir / "curves.jsonl")
        self.stage = ControlNetStage(config, self.prior, self.data)

    def run(self) -> Path:
        """Trains to the end; returns the folder of the ControlNet, for --controlnet."""
        self.trainer.train(self.stage, self.curves, self.config.log_kimg, self._on_step)
        self._write_grid("final")
        folder = self.outdir / NAME
        save_controlnet(self.trainer.average[NAME], folder, self._facts())
        return folder

    def _on_step(self, progress: Progress) -> None:
        batch = self.trainer.config.batch
        if crossed(progress.images - batch, progress.images, self.config.image_kimg) and not progress.done:
            self._write_grid(f"{progress.kimg:06.1f}kimg")
        due = crossed(progress.images - batch, progress.images, self.config.snapshot_kimg)
        if due or progress.done or self.trainer.stopping:
            save_state(self.outdir, {"stage": NAME, "trainer": self.trainer.state()})

    def _facts(self) -> dict[str, Any]:
        progress = self.trainer.progress
        return {
            "base": self.base,
            "labels": self.config.labels,
            "resolution": self.prior.image_size,
            "pictures": self.data.count,
            "kimg": progress.kimg,
            "seconds": round(progress.seconds, 1),
        }

    @torch.no_grad()
    def _write_grid(self, name: str) -> None:
        """A row per mask: the mask, its picture, samples at guidance 1, 4 and 7.5."""
        count = min(self.config.grid_masks, self.data.count)
        batch = self.stage.read([round(i * self.data.count / count) for i in range(count)])
        labels = self.data.labels
        condition = self.prior.condition(batch.mask.to(self.prior.device), labels)
        columns = [[labels.colourise(mask.numpy()) for mask in batch.mask]]
        columns.append([to_tile(picture.float() / 127.5 - 1) for picture in batch.image])
        for guidance in GUIDANCE:
            rows = zip(self.stage.captions(batch), condition.split(1), strict=True)  # one at a time: memory
            samples = [
                self.prior.sample([caption], one, steps=self.config.grid_steps, guidance=guidance)[0]
                for caption, one in rows
            ]
            columns.append([to_tile(sample) for sample in samples])
        scale = 2 if self.prior.image_size <= _LARGEST_TILE else 1
        save_grid(
            self.outdir / "grids" / f"samples_{name}.png",
            [list(row) for row in zip(*columns, strict=True)],
            scale,
        )


def save_controlnet(controlnet: ControlNetModel, folder: Path, facts: dict[str, Any]) -> None:
    """The diffusers folder with ``facts`` in training.json, complete or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        controlnet.save_pretrained(temporary)
        write_json(temporary / "training.json", facts)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def train_controlnet(
    config: ControlNetConfig, base: str, outdir: Path, resume: Path | None = None, device: str = "cpu"
) -> Path:
    """Train the ControlNet that ``config`` describes for the model ``base``; returns its folder."""
    started = time.monotonic()
    folder = ControlNetTraining(config, base, outdir, resume, device).run()
    tqdm.write(f"{folder} is ready after {(time.monotonic() - started) / 60:.1f} minutes")
    return folder
