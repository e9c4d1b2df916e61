"""Training of the small prior: first the autoencoder, then the diffusion model on its latents."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datasets.labels import label_set
from dnnlib import config as config_files
from dnnlib.errors import UserError
from dnnlib.files import make_folder, read_json
from training.prior.autoencoder import AutoencoderStage
from training.prior.config import PriorConfig
from training.prior.data import PriorData, read_data
from training.prior.diffusion import DiffusionStage, encode_all
from training.prior.grids import grid_indices, prompt_grid, reconstruction_grid, sample_grid
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
from training.prior.models import PRIOR_FILE, PriorParts, build_parts, save_parts, words_of
from training.prior.prior import prior_of
from training.schedules import crossed

PRIOR_FOLDER = "prior"
AUTOENCODER, DIFFUSION = "autoencoder", "diffusion"
_ENCODED, _ENCODED_CUDA = 64, 512  # pictures at once


class PriorTraining:
    """One run in ``outdir``: config.json, curves.jsonl, grids/, state.safetensors and, at the end, prior/."""

    def __init__(
        self,
        config: PriorConfig,
        outdir: Path,
        resume: Path | None = None,
        base: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """``base``: a finished small prior whose weights are where the diffusion model starts. The pictures
        are moved to ``device`` as a whole."""
        self.config = config
        self.base = base
        self.outdir = outdir
        self.labels = label_set(config.labels)
        refuse_other_run(outdir, resume)
        self.resumed = read_state(resume) if resume else None
        self.data: PriorData = read_data(config).to(device)
        words = words_of([*self.data.captions, *chain.from_iterable(self.data.retold)])
        self.parts: PriorParts = build_parts(config, words if base is None else words_of_base(base, words))
        if self.resumed and self.resumed.get("stage") not in (AUTOENCODER, DIFFUSION):
            raise UserError(f"{resume} is a state of another training: give --controlnet-only with it")
        if self.resumed and self.resumed["words"] != list(self.parts.words):
            raise UserError(
                f"{resume} was trained on captions with other words: resume with the data it began with"
            )
        self.facts: dict[str, Any] = {"pictures": len(self.data) // 2}
        if base is not None:
            start_from(self.parts, base)
            base_facts = read_json(base / PRIOR_FILE)
            repeated = ("format", "labels", "normal_maps", "words", "config")
            self.facts["base"] = {k: v for k, v in base_facts.items() if k not in repeated}
        for module in self.parts.modules().values():
            module.to(device)
        make_folder(outdir)
        self.curves = Curves(outdir / "curves.jsonl")

    def run(self) -> Path:
        """Train both stages; returns the folder of the finished prior."""
        if self.config.autoencoder.optimiser.kimg or self.resumed:
            self._train_autoencoder()
        latents = self._scaled_latents()
        self._train_diffusion(latents)
        folder = self.outdir / PRIOR_FOLDER
        save_parts(self.parts, folder, self.config, self.facts)
        return folder

    def _train_autoencoder(self) -> None:
        vae = self.parts.vae.to(memory_format=torch.channels_last)  # a fifth faster on CPUs
        if self.resumed and self.resumed["stage"] == DIFFUSION:
            vae.load_state_dict(self.resumed["vae"])
            self.facts.update(self.resumed["facts"])
            return
        options = self.config.autoencoder
        trainer = StageTrainer(
            AUTOENCODER,
            {"vae": vae},
            options.optimiser,
            self.config.seed,
            60 * self.config.minutes * self._autoencoder_share,
        )
        if self.resumed:
            trainer.load_state(self.resumed["trainer"])

        def picture(name: str) -> None:
            path = self.outdir / "grids" / f"autoencoder_{name}.png"
            reconstruction_grid(path, trainer.average["vae"], self.data, self.config.grid_masks)

        stage = AutoencoderStage(options, self.data)
        trainer.train(stage, self.curves, self.config.log_kimg, self._watch(trainer, picture, {}))
        vae.load_state_dict(trainer.average["vae"].state_dict())
        picture("final")
        self._note(trainer)

    @property
    def _autoencoder_share(self) -> float:
        """Of --minutes: none for an autoencoder that stays as it is."""
        options = self.config.autoencoder
        return options.time_share if options.optimiser.kimg else 0.0

    def _scaled_latents(self) -> torch.Tensor:
        """Encode the set once; sets the scaling factor that makes latents of unit variance."""
        self.parts.vae.eval().requires_grad_(False)
        on_cuda = self.data.device.type == "cuda"
        latents = encode_all(self.parts, self.data, _ENCODED_CUDA if on_cuda else _ENCODED)
        scale = 1 / float(latents.std())
        self.parts.vae.register_to_config(scaling_factor=round(scale, 5))
        return latents * self.parts.vae.config.scaling_factor

    def _train_diffusion(self, latents: torch.Tensor) -> None:
        options = self.config.diffusion
        modules = {name: module for name, module in self.parts.modules().items() if name != "vae"}
        seconds = 60 * self.config.minutes * (1 - self._autoencoder_share)
        trainer = StageTrainer(DIFFUSION, modules, options.optimiser, self.config.seed, seconds)
        if self.resumed and self.resumed["stage"] == DIFFUSION:
            trainer.load_state(self.resumed["trainer"])
        averaged = dataclasses.replace(self.parts, **dict(trainer.average.items()))
        prior = prior_of(averaged).to(latents.device)

        def picture(name: str) -> None:
            path = self.outdir / "grids" / f"samples_{name}.png"
            sample_grid(path, prior, self.data, self.labels, self.config.grid_masks, self.config.grid_steps)

        stage = DiffusionStage(options, self.data, self.parts, latents, self.labels)
        vae = {"vae": self.parts.vae.state_dict()}
        trainer.train(stage, self.curves, self.config.log_kimg, self._watch(trainer, picture, vae))
        picture("final")
        masks = self.data.masks[grid_indices(self.data, self.config.grid_masks)]
        prompts = tuple(p for p in self.config.grid_prompts if not prior.vocabulary.unknown(p))
        prompt_grid(
            self.outdir / "grids" / "prompts.png",
            prior,
            masks,
            self.labels,
            prompts,
            self.config.grid_steps,
            4.0,
        )
        self._note(trainer)
        self.parts = averaged

    def _note(self, trainer: StageTrainer) -> None:
        progress = trainer.progress
        self.facts[trainer.name] = {
            "kimg": progress.kimg,
            "seconds": round(progress.seconds, 1),
            "parameters": {name: sum(p.numel() for p in m.parameters()) for name, m in trainer.live.items()},
        }
        rate = progress.images / max(progress.seconds, 1e-9)
        tqdm.write(f"{trainer.name}: {progress.kimg:.1f} kimg in {progress.seconds:.0f} s, {rate:.1f} img/s")

    def _watch(
        self, trainer: StageTrainer, picture: Callable[[str], None], extra: dict[str, Any]
    ) -> Callable[[Progress], None]:
        """Grids and snapshots whenever another ``image_kimg`` or ``snapshot_kimg`` is over."""

        batch = trainer.config.batch

        def on_step(progress: Progress) -> None:
            if (
                crossed(progress.images - batch, progress.images, self.config.image_kimg)
                and not progress.done
            ):
                picture(f"{progress.kimg:06.1f}kimg")
            due = crossed(progress.images - batch, progress.images, self.config.snapshot_kimg)
            if due or progress.done or trainer.stopping:
                self._save_state(trainer, extra)

        return on_step

    def _save_state(self, trainer: StageTrainer, extra: dict[str, Any]) -> None:
        state = {
            "stage": trainer.name,
            "trainer": trainer.state(),
            "words": list(self.parts.words),
            "facts": self.facts,
            **extra,
        }
        config_files.save(
            self.config, self.outdir / CONFIG_FILE
        )  # of this state: not before it is known to fit
        save_state(self.outdir, state)


def words_of_base(base: Path, needed: tuple[str, ...]) -> tuple[str, ...]:
    """The words that the finished prior ``base`` knows, of which these captions may have fewer: tokens stay
    what they are. UserError if they have others."""
    known = tuple(read_json(base / PRIOR_FILE)["words"])
    if unknown := sorted(set(needed) - set(known)):
        raise UserError(
            f"--base {base} does not know {', '.join(unknown)} of these captions: train a prior from scratch"
        )
    return known


def start_from(parts: PriorParts, base: Path) -> None:
    """Copies the weights of a finished small prior of the same sizes. Raises UserError if they differ."""
    prior = load_prior(base)
    for name, module in parts.modules().items():
        try:
            module.load_state_dict(getattr(prior, name).state_dict())
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"--base {base}: its {name} has other sizes ({reason})") from error


def train_prior(
    config: PriorConfig,
    outdir: Path,
    resume: Path | None = None,
    base: Path | None = None,
    device: str = "cpu",
) -> Path:
    """Train the small prior that ``config`` describes on ``device``; returns the finished prior's folder."""
    started = time.monotonic()
    folder = PriorTraining(config, outdir, resume, base, device).run()
    tqdm.write(f"{folder} is ready after {(time.monotonic() - started) / 60:.1f} minutes")
    return folder
