"""The training loop: runs the phases one after another, feeds them, and writes what they leave behind."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.masked_images import Batch, MaskedImages, collate, infinite_sampler
from dnnlib import config as config_files
from dnnlib.errors import UserError
from dnnlib.files import make_folder
from torch_utils import checkpoint, distributed
from torch_utils.device import peak_memory_mb
from training import snapshots
from training.adversarial import AdversarialPhase
from training.config import TrainConfig
from training.curves import Curves, CurveWriter
from training.generator import Generator
from training.graphs import Recorder
from training.growing import grow
from training.networks.encoder import ENCODER_FILE, Encoder
from training.phases import Context, Phase, SpherePhase, build_models, local_batch
from training.reconstruction import Reconstruction
from training.schedules import crossed, moment
from training.stopping import StopSignals
from training.updates import FiniteGuard
from training.warmstart import WarmStartPhase

PHASES = ("sphere", "warm_start", "adversarial")
JUDGES = ("discriminator", "discriminator_mask", "parser")
CONFIG_FILE = "config.yaml"
_SPHERE_LINES = 10  # lines that the sphere phase writes to the curves


@dataclass
class Progress:
    """Where a run stands. Images count over all processes."""

    phase: int = 0  # index into PHASES
    images: int = 0  # of this phase
    total: int = 0  # of all phases that see pictures
    position: int = 0  # samples drawn from the data set
    seconds: float = 0.0  # spent training


class Trainer:
    """One run. ``Trainer(...).run()`` does what is left of it."""

    def __init__(
        self,
        config: TrainConfig,
        outdir: Path,
        device: torch.device,
        resume: Path | None = None,
        fresh_judges: bool = False,
    ) -> None:
        """``fresh_judges``: of ``resume``, only what makes pictures (:meth:`_begin_adversaries`)."""
        self.config = config
        self.outdir = Path(outdir)
        self.device = device
        self.progress = Progress()
        torch.manual_seed(config.seed)
        models = build_models(config, device)
        # networks begin alike everywhere, what is drawn from here on differs
        torch.manual_seed(config.seed * 7919 + distributed.rank() + 1)
        recorder = Recorder(device, config.cuda_graphs)
        if recorder.enabled and distributed.world_size() > 1:
            raise UserError("cuda_graphs records the steps of a single process: leave it off under torchrun")
        guard = FiniteGuard(config.max_nonfinite)
        self.context = Context(config, models, Curves(), guard, device, recorder)
        self.data = self._open_data(())
        self.scenes = snapshots.fixed_scenes(config.generator.z_dim, self.data.cameras(), config.seed, device)
        self.phase: Phase
        self._check_later_phases()
        if resume is not None:
            self._resume(resume, fresh_judges)
        else:
            self._take_encoder()
            self._enter_phase()

    def _check_later_phases(self) -> None:
        """What phases demand of the batch and the pictures is said before others have worked for hours."""
        AdversarialPhase(self.context)
        if self.context.models.encoder is None:
            return
        try:
            self._open_data(Reconstruction(self.context).extras)
        except UserError as error:
            raise UserError(
                f"{error}; pictures without depth and normals are trained on without reconstructions: "
                "--set warm_start.kimg=0 --set warm_start.keep=0"
            ) from error

    def run(self, minutes: float | None = None) -> bool:
        """Trains until the last phase is finished (True), or until a signal or the time limit (False)."""
        main = distributed.is_main()
        if main:
            make_folder(self.outdir)
            if aside := snapshots.set_aside(self.outdir, self.progress.total):
                print(f"what this run had written after {self.progress.total} images is now in {aside}")
            config_files.save(self.config, self.outdir / CONFIG_FILE)
        self.writer = CurveWriter(self.outdir, self.progress.total) if main else None
        self._scores = self._open_scores() if main and self.config.metrics_kimg else None
        self._since = (time.monotonic(), self.progress.total)
        saved_at = None
        with StopSignals(minutes, self.device) as stop, self.context.recorder.stream():
            while not (self.finished or stop.asked()):
                for _ in self._steps(stop):
                    if self._crossed(self.config.snapshot_kimg):
                        saved_at = self.save()
                if self.progress.images >= self.phase.length:
                    if self.phase.extras is not None and not self._in_last_phase():
                        self.save()  # whatever comes next, this phase is not lost
                    self.phase.finish()
                    self._write_grid()
                    if not self.finished:
                        self._enter_phase()
            if saved_at != asdict(self.progress):
                self.save()
        if self.writer:
            self.writer.close()
        return self.finished

    def _read(self, batches: Iterator[Batch]) -> Batch:
        """The next batch. A picture that has gone bad meanwhile ends the run, and costs nothing learned."""
        try:
            return next(batches)
        except UserError as error:
            # Of several processes the others do not know, and would be waited for in vain.
            if distributed.world_size() > 1 or not self.progress.total:
                raise
            self.save()
            raise UserError(f"{error} (saved until there: go on with --resume {self.outdir})") from error

    def _steps(self, stop: StopSignals) -> Iterator[None]:
        """Steps of the present phase; yields after each."""
        phase, progress = self.phase, self.progress
        batches = self._batches()
        bar = tqdm(
            total=phase.length,
            initial=progress.images,
            desc=phase.name,
            unit="img",
            disable=not distributed.is_main(),
            mininterval=1.0,
        )
        with bar:
            while progress.images < phase.length and not stop.asked():
                started = time.monotonic()
                batch = self._read(batches) if batches is not None else None
                phase.step(batch, progress.images)
                self._count()
                progress.seconds += time.monotonic() - started
                bar.update(phase.batch)
                if self._due_line():
                    self._write_line(bar)
                if self._crossed(self.config.image_kimg):
                    self._write_grid()
                if self._scores and self._crossed(self.config.metrics_kimg):
                    scores = self._scores(self.context.models.average)
                    self.writer.write(self.progress.total, {"phase": self.phase.name, **scores})
                yield

    def _count(self) -> None:
        self._before = self.progress.total
        self.progress.images += self.phase.batch
        if self.phase.extras is not None:
            self.progress.total += self.phase.batch
            self.progress.position += self.phase.batch

    def _crossed(self, kimg: float) -> bool:
        """Whether the last step passed a multiple of so many thousand images."""
        return crossed(self._before, self.progress.total, kimg)

    def _due_line(self) -> bool:
        if self.phase.extras is None:
            every = max(1, self.config.sphere.steps // _SPHERE_LINES) * self.phase.batch
            return self.progress.images % every == 0
        return self._crossed(self.config.log_kimg)

    def _write_line(self, bar: tqdm) -> None:
        self.context.guard.check()
        values = self.context.curves.collect()
        if self.writer is None:
            return
        since, total = self._since
        self._since = (time.monotonic(), self.progress.total)
        values |= self._state_of_affairs()
        values["progress/images_per_second"] = (self.progress.total - total) / max(
            time.monotonic() - since, 1e-9
        )
        self.writer.write(self.progress.total, {"phase": self.phase.name, **values})
        shown = {name.split("/")[1]: f"{value:.3g}" for name, value in values.items() if name in _ON_THE_BAR}
        bar.set_postfix(shown, refresh=False)

    def _state_of_affairs(self) -> dict[str, float]:
        config, progress = self.config, self.progress
        values = {
            "progress/phase_kimg": progress.images / 1000,
            "progress/hours": progress.seconds / 3600,
            "progress/nonfinite_steps": self.context.guard.count,
            "progress/peak_memory_gb": peak_memory_mb(self.device) / 1024,
            "shape/beta": self.context.models.generator.decoder.sigmoid_beta.item(),
        }
        if self.phase.name == "adversarial":
            now = moment(config.schedule, progress.images, config.batch)
            values |= {
                "schedule/swap_probability": now.swap_probability,
                "schedule/blur_pixels": now.blur * config.generator.resolution,
                "schedule/raw_resolution": now.raw_resolution,
            }
        return values

    def _write_grid(self) -> None:
        if distributed.is_main():
            path = self.outdir / f"grid-{self.progress.total // 1000:06d}.png"
            snapshots.write_grid(path, self.context.models.average, self.scenes)

    def _open_scores(self) -> Callable[[Generator], dict[str, float]]:
        """What ``evaluate.py quality`` says of a generator. What it lacks, it says before the run begins."""
        # its packages take longer to import than all others together, and few runs want it
        from training.metrics.evaluation import TrainingScores

        with torch.random.fork_rng():  # its networks are drawn before they are read
            return TrainingScores(self.config, self.device)

    def save(self) -> dict:
        """Writes the generator and the state to resume from; returns the progress that they stand for."""
        states = snapshots.random_states(self.device)
        if distributed.is_main():
            total = self.progress.total
            self.context.models.average.save(
                snapshots.snapshot_path(self.outdir, total), {"images": total, "phase": self.phase.name}
            )
            if self.context.models.encoder is not None:
                self.context.models.encoder.save(self.outdir / ENCODER_FILE, {"images": total})
            snapshots.save_state(self.outdir, total, self.state_dict(states))
        distributed.barrier()
        return asdict(self.progress)

    def state_dict(self, random_states: list[dict]) -> dict:
        """Everything that the run needs to go on as if it had not stopped."""
        return {
            "progress": asdict(self.progress),
            "phase_name": self.phase.name,
            "nonfinite": self.context.guard.count,
            "models": {name: module.state_dict() for name, module in self.context.models.named().items()},
            "phase": self.phase.state_dict(),
            "random": random_states,
        }

    def _resume(self, source: Path, fresh_judges: bool) -> None:
        if snapshots.is_generator(source):
            if fresh_judges:
                raise UserError(f"--fresh-judges: {source} is a generator alone, whose judges are new anyway")
            self._start_from(source)
            return
        state, path = snapshots.load_state(source, self.device)
        self.progress = Progress(**state["progress"])
        self.context.guard.count = state["nonfinite"]
        if "encoder" not in state["models"]:
            self._take_encoder()
        for name, module in self.context.models.named().items():
            if name in ("parser", "encoder") and name not in state["models"]:
                continue  # the losses that it is for are new to this run: it starts as in a new one
            if not (fresh_judges and name in JUDGES):
                _load(module, state["models"][name], path)
        if fresh_judges:
            self._begin_adversaries(state["phase"])
        else:
            self._reenter_phase(state["phase"])
        if len(state["random"]) == distributed.world_size():
            snapshots.set_random_state(state["random"][distributed.rank()])
        elif distributed.is_main():
            print(
                f"{path} was written by {len(state['random'])} processes, this run has "
                f"{distributed.world_size()}: it goes on with new random numbers",
                file=sys.stderr,
            )

    def _start_from(self, source: Path) -> None:
        """Training of a finished generator, or of what a smaller one grows to, from after the spheres on:
        weights only, all else is new."""
        tensors, _ = checkpoint.load(source, device=self.device)
        for module in (self.context.models.generator, self.context.models.average):
            with _fitting(source):
                grow(module, tensors)
        self._take_encoder()
        self.progress.phase = PHASES.index("sphere") + 1
        self._enter_phase()

    def _take_encoder(self) -> None:
        """The encoder that the configuration begins with, where the run has none of its own yet."""
        source, encoder = self.config.warm_start.encoder, self.context.models.encoder
        if source and encoder is None:
            raise UserError("warm_start.encoder is given, but neither warm_start.kimg nor keep uses one")
        if source:
            _take_encoder(encoder, Path(source), self.device)

    def _begin_adversaries(self, state: dict) -> None:
        """The adversarial phase from its first image on, of the averaged generator, with new discriminators
        and a new parser: a long training against the same ones leaves marks that only these can read."""
        models = self.context.models
        models.generator.load_state_dict(models.average.state_dict())
        self.progress.phase, self.progress.images = PHASES.index("adversarial"), 0
        self.phase = self._build_phase("adversarial")
        if self.phase.reconstruction is not None:
            self.phase.reconstruction.load_state_dict(state)

    def _reenter_phase(self, state: dict) -> None:
        """The phase that a run was stopped in; if that was at its very end, the next one."""
        phase = self._build_phase(PHASES[self.progress.phase])
        if phase is not None:
            phase.load_state_dict(state)
            if self.progress.images < phase.length or self._in_last_phase():
                self.phase = phase
                return
            phase.finish()
        self._enter_phase()

    def _enter_phase(self) -> None:
        """Builds the phase that the progress names, or the next one that has anything to do."""
        while True:
            self.phase = self._build_phase(PHASES[self.progress.phase])
            if self.phase is not None and (self.progress.images < self.phase.length or self._in_last_phase()):
                return
            self.progress.phase, self.progress.images = self.progress.phase + 1, 0

    def _build_phase(self, name: str) -> Phase | None:
        if name == "sphere":
            return SpherePhase(self.context)
        if name == "warm_start":
            return WarmStartPhase(self.context) if self.config.warm_start.kimg > 0 else None
        return AdversarialPhase(self.context)

    def _in_last_phase(self) -> bool:
        return self.progress.phase == len(PHASES) - 1

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do. The last phase keeps its state, so that a later --kimg can go on."""
        return self._in_last_phase() and self.progress.images >= self.phase.length

    def _batches(self) -> Iterator[Batch] | None:
        """This process's share of the pictures, from where the run stands."""
        if self.phase.extras is None:
            return None
        if self.phase.extras != self.data.extras:
            self.data = self._open_data(self.phase.extras)
        workers = self.config.data.workers
        if workers and self.config.data.cache:
            self.data.preload()  # before the workers fork, so that they share it
        sampler = infinite_sampler(
            len(self.data),
            distributed.rank(),
            distributed.world_size(),
            self.config.seed,
            start=self.progress.position,
        )
        loader = DataLoader(
            self.data,
            batch_size=local_batch(self.phase.batch, "batch"),
            sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=_leave_signals,
            pin_memory=self.device.type == "cuda",
            # a generator of its own: starting a loader must not move the run's random numbers
            generator=torch.Generator(),
        )
        return (batch.to(self.device, non_blocking=True) for batch in loader)

    def _open_data(self, extras: tuple[str, ...]) -> MaskedImages:
        data = self.config.data
        return MaskedImages(
            data.images,
            data.masks or None,
            self.config.generator.labels,
            self.config.generator.resolution,
            mirror=data.mirror,
            cache=data.cache,
            extras=extras,
        )


_ON_THE_BAR = ("generator/image", "discriminator/image_real_sign", "fit/image", "fit/mask", "sphere/global")


def train(
    config: TrainConfig,
    outdir: Path,
    *,
    resume: Path | None = None,
    fresh_judges: bool = False,
    minutes: float | None = None,
) -> Trainer:
    """Trains, alone or as one of torchrun's processes; returns the trainer as it stands at the end."""
    device = distributed.init()
    try:
        trainer = Trainer(config, outdir, device, resume, fresh_judges)
        if trainer.finished and trainer.progress.total:
            if distributed.is_main():
                had = f"{trainer.progress.images / 1000:g} of {config.kimg:g} kimg"
                print(f"nothing is left to train: the adversarial phase has had {had}; give a larger --kimg")
            return trainer
        finished = trainer.run(minutes)
        if distributed.is_main():
            what = "finished" if finished else "stopped"
            print(f"{what} after {trainer.progress.total / 1000:g} kimg; results are in {outdir}")
            if not finished:
                print(f"go on with: python train_generator.py --resume {outdir}")
        return trainer
    finally:
        distributed.shutdown()


def _leave_signals(_: int) -> None:
    """In a process that reads pictures: a signal to the whole group is for the one that trains, which ends
    this one when it has finished its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _take_encoder(encoder: Encoder, source: Path, device: torch.device) -> None:
    """Weights of an encoder of the same sizes."""
    given = Encoder.load(source, device)
    differing = [
        f"{name} {value} instead of {wanted}"
        for (name, value), wanted in zip(
            asdict(given.config).items(), asdict(encoder.config).values(), strict=True
        )
        if value != wanted
    ]
    if differing:
        raise UserError(f"warm_start.encoder: {source} has {', '.join(differing)}")
    encoder.load_state_dict(given.state_dict())


def _load(module: torch.nn.Module, tensors: dict, path: Path) -> None:
    with _fitting(path):
        module.load_state_dict(tensors)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Where weights that do not fit are the user's mistake."""
    try:
        yield
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).splitlines()[-1], 160, placeholder=" ...")
        raise UserError(
            f"--resume {path} does not fit the sizes of this configuration (what a run began with is in its "
            f"{CONFIG_FILE}): {reason}"
        ) from error
