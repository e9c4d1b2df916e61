"""From a command line to a run: which configuration, which folder, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from datasets.portraits import BUNDLED
from dnnlib import config as config_files
from dnnlib.errors import UserError, did_you_mean
from training import loop, snapshots, summary
from training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TRY = (  # from the clone's folder
    f"python train_generator.py --cfg portraits-64 --data {BUNDLED.relative_to(CONFIGS.parent).as_posix()} "
    "--outdir runs/try --minutes 10"
)
# option of the command line -> field that it sets
_FIELDS = {
    "data": "data.images",
    "masks": "data.masks",
    "kimg": "kimg",
    "batch": "batch",
    "gamma": "loss.gamma",
    "aug": "augment.mode",
    "seed": "seed",
    "workers": "data.workers",
}


@dataclass(frozen=True)
class Run:
    """What to train and where."""

    config: TrainConfig
    outdir: Path
    resume: Path | None
    fresh_judges: bool = False  # of the state to resume, only what makes pictures goes on


def resolve(
    *,
    cfg: str | None,
    outdir: Path | None,
    resume: Path | None,
    fresh_judges: bool = False,
    overrides: Sequence[str] = (),
    **options: str | float | None,
) -> Run:
    """The configuration of ``cfg`` (or of the run to resume), then options, then ``a.b=c`` overrides."""
    if fresh_judges and resume is None:
        raise UserError("--fresh-judges needs --resume: a run folder or training state")
    source = _source(cfg, resume)
    given = [f"{_FIELDS[name]}={value}" for name, value in options.items() if value is not None]
    config = config_files.load(TrainConfig, source, [*given, *overrides])
    if outdir is None:
        outdir = _default_outdir(cfg, source, resume)
    return Run(config, outdir, resume, fresh_judges)


def _default_outdir(cfg: str | None, source: Path, resume: Path | None) -> Path:
    """The folder of the run that goes on. A generator alone begins a new one, which must not mix with what
    lies beside that file."""
    if resume is None or (cfg is not None and snapshots.is_generator(resume)):
        return Path("runs") / source.stem
    if snapshots.is_generator(resume):
        raise UserError(f"--resume {resume} is a generator, which a new run begins with: give its --outdir")
    return _folder(resume)


def dry_run(run: Run) -> str:
    """The configuration as YAML, its cost, and where results would go."""
    text = yaml.safe_dump(config_files.to_dict(run.config), sort_keys=False, default_flow_style=None)
    return f"{text}\n{summary.describe(run.config)}\nresults would go to {run.outdir}"


def start(run: Run, *, minutes: float | None = None) -> bool:
    """Trains; first says in one line what is missing. Returns whether the run is finished."""
    config = run.config
    if not config.data.images:
        side = config.generator.resolution
        raise UserError(
            f"no pictures: give --data (folder or zip of {side}x{side} images with dataset.json) and --masks "
            f"({config.generator.labels} masks of the same stems), see docs/data.md; to try it on 64 bundled "
            f"portraits: {TRY}"
        )
    goes_on = run.resume is not None and not snapshots.is_generator(run.resume)
    goes_on = goes_on and _folder(run.resume).resolve() == run.outdir.resolve()
    if not goes_on and run.outdir.is_dir() and snapshots.find_states(run.outdir):
        raise UserError(
            f"{run.outdir} holds a run already: go on with --resume {run.outdir}, or give another --outdir"
        )
    options = {"resume": run.resume, "fresh_judges": run.fresh_judges, "minutes": minutes}
    return loop.train(config, run.outdir, **options).finished


def _source(cfg: str | None, resume: Path | None) -> Path:
    if cfg is None:
        if resume is None:
            raise UserError(f"give --cfg: {', '.join(_bundled())}, or a YAML file; to try it: {TRY}")
        if not resume.exists():
            raise UserError(f"--resume {resume}: there is no such run or file")
        saved = _folder(resume) / loop.CONFIG_FILE
        if not saved.is_file():
            if not (resume.suffix == ".safetensors" or snapshots.find_states(_folder(resume))):
                raise UserError(
                    f"--resume {resume} is neither the folder of a run nor its state nor a generator"
                )
            raise UserError(f"--resume {resume}: {saved} is not there, so say which configuration with --cfg")
        return saved
    if Path(cfg).suffix in (".yaml", ".yml", ".json"):
        return Path(cfg)
    if cfg not in _bundled():
        raise UserError(f"--cfg {cfg} is neither a YAML file nor bundled; {did_you_mean(cfg, _bundled())}")
    return CONFIGS / f"{cfg}.yaml"


def _bundled() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def _folder(resume: Path) -> Path:
    return resume if resume.is_dir() else resume.parent
