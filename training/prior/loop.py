"""The training loop that both stages share: optimiser, averaged weights, curves, snapshots, time limit."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import atomic_path, finite
from torch_utils import checkpoint
from training.curves import read_curves
from training.prior.config import OptimiserConfig
from training.stopping import StopSignals
from training.updates import load_memory

STATE_FILE = "state.safetensors"
CONFIG_FILE = "config.json"
MAX_NONFINITE = 10  # steps in a row whose gradient is not finite


class Stopped(Exception):
    """A run was asked to end before its end (Ctrl-C, SIGTERM), and its state is saved."""


class Stage(Protocol):
    """A stage's data and objective."""

    def losses(self, module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]: ...


class Curves:
    """Learning curves: one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, stage: str, kimg: float) -> None:
        """Drops the lines from after ``stage`` had seen so many pictures, where a run goes on there."""
        lines = read_curves(self.path)
        later = [n for n, line in enumerate(lines) if line.get("stage") == stage and line["kimg"] > kimg]
        if later:
            with atomic_path(self.path) as temporary:
                kept = "".join(json.dumps(line) + "\n" for line in lines[: later[0]])
                temporary.write_text(kept, encoding="utf-8")

    def write(self, **values: Any) -> None:
        rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(rounded)) + "\n")


@dataclass
class Progress:
    """Where a stage stands."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0  # of training, over all resumed runs
    done: bool = False

    @property
    def kimg(self) -> float:
        return self.images / 1000


class StageTrainer:
    """Trains the modules of one stage and keeps a running average of their weights."""

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        config: OptimiserConfig,
        seed: int,
        seconds: float = 0.0,
    ) -> None:
        self.name = name
        self.config = config
        self.seed = seed
        self.seconds = seconds  # time limit, 0: none
        self.live = nn.ModuleDict(modules).train()
        self.average = copy.deepcopy(self.live).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.live.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.progress = Progress()
        self.stopping = False  # asked to end after the step in hand
        self._nonfinite = 0

    def state(self) -> dict[str, Any]:
        """All that :meth:`load_state` needs to go on."""
        return {
            "progress": vars(self.progress).copy(),
            "live": self.live.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`. Random numbers depend on seed and step alone and need no state."""
        self.progress = Progress(**state["progress"])
        self.progress.done = self.fraction() >= 1  # the stage may be longer now
        try:
            self.live.load_state_dict(state["live"])
            self.average.load_state_dict(state["average"])
            load_memory(self.optimiser, state["optimiser"], own=("lr", "betas", "weight_decay"))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"--resume: the state of {self.name} does not fit: {reason}") from error

    def train(
        self, stage: Stage, curves: Curves, log_kimg: float, on_step: Callable[[Progress], None]
    ) -> None:
        """Run to the end of the stage, by pictures or by time; ``on_step`` sees the progress of each step.

        Raises :class:`Stopped` after a signal; that step's ``on_step`` has to save (:attr:`stopping`).
        """
        total = round(self.config.kimg * 1000)
        progress = self.progress
        sums: dict[str, list[float]] = {}
        started = time.monotonic() - progress.seconds
        curves.rewind(self.name, progress.kimg)
        bar = tqdm(total=total, initial=progress.images, desc=self.name, unit="img")
        with StopSignals(None, torch.device("cpu")) as stop, bar:
            while not progress.done:
                values = self._step(stage)
                progress.step += 1
                progress.images += self.config.batch
                progress.seconds = time.monotonic() - started
                progress.done = self.fraction() >= 1
                for key, value in values.items():
                    sums.setdefault(key, []).append(value)
                logged = (progress.images - self.config.batch) // (log_kimg * 1000)
                if progress.images // (log_kimg * 1000) > logged or progress.done:
                    means = {
                        k: float(np.nanmean(v)) if not np.isnan(v).all() else None for k, v in sums.items()
                    }
                    curves.write(stage=self.name, kimg=progress.kimg, seconds=progress.seconds, **means)
                    bar.set_postfix({k: v for k, v in means.items() if k != "lr" and v is not None})
                    sums.clear()
                bar.update(self.config.batch)
                paused = time.monotonic()
                self.stopping = stop.asked() and not progress.done
                on_step(progress)
                if self.stopping:
                    raise Stopped
                started += time.monotonic() - paused  # pictures and snapshots are not training time

    def fraction(self) -> float:
        """How much of the stage is over, by pictures or by time, whichever is further."""
        by_images = self.progress.images / max(self.config.kimg * 1000, 1)
        by_time = self.progress.seconds / self.seconds if self.seconds else 0.0
        return max(by_images, by_time)

    def _step(self, stage: Stage) -> dict[str, float]:
        step = self.progress.step
        lr = self.config.lr * min((step + 1) / max(self.config.warmup, 1), 1.0)
        lr *= 0.5 * (1 + math.cos(math.pi * min(self.fraction(), 1.0)))
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        losses = stage.losses(self.live, step_generator(self.seed, self.name, step))
        self.optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.live.parameters(), self.config.clip)
        # read together: on CUDA the only time that a step waits for the device
        *values, length = torch.stack([*(value.detach() for value in losses.values()), norm]).tolist()
        if math.isfinite(length):
            self.optimiser.step()
            self._nonfinite = 0
        else:
            self._nonfinite += 1
            if self._nonfinite > MAX_NONFINITE:
                raise UserError(
                    f"{self.name}: {self._nonfinite} steps in a row without a finite gradient "
                    f"(at step {step}); try a smaller --lr"
                )
        self._update_average()
        return {**dict(zip(losses, values, strict=True)), "gradient_norm": length, "lr": lr}

    @torch.no_grad()
    def _update_average(self) -> None:
        seen = self.progress.images + self.config.batch
        half_life = min(self.config.ema_kimg * 1000, seen / 10)
        weight = 1 - 0.5 ** (self.config.batch / max(half_life, 1e-8))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.live.parameters()), weight)


def refuse_other_run(outdir: Path, resume: Path | None) -> None:
    """Raises UserError if the folder holds another run than the one to resume: it would be overwritten."""
    state = outdir / STATE_FILE
    own = resume is not None and (resume if resume.is_dir() else resume.parent).resolve() == outdir.resolve()
    if state.exists() and not own:
        raise UserError(
            f"{outdir} holds a run already: go on with --resume {outdir}, or give another --outdir"
        )


def save_state(outdir: Path, state: dict[str, Any]) -> None:
    """All that a run needs to go on, as safetensors."""
    tensors, structure = checkpoint.flatten(state)
    checkpoint.save(outdir / STATE_FILE, tensors, {"structure": structure})


def read_state(path: Path) -> dict[str, Any]:
    """A state file, or the run folder that holds one."""
    file = path / STATE_FILE if path.is_dir() else path
    tensors, meta = checkpoint.load(file)
    if "structure" not in meta:
        raise UserError(
            f"{file} is no state of train_prior.py: give {STATE_FILE} of a run, or the run's folder"
        )
    return checkpoint.unflatten(tensors, meta["structure"])


def step_generator(seed: int, name: str, step: int) -> torch.Generator:
    """Random numbers of one step, the same whether the run was interrupted before it or not."""
    entropy = np.random.SeedSequence([seed, *name.encode(), step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> 1))
