"""Runs the groups of the benchmark, each in a process of its own, and writes the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dnnlib import config as config_files
from dnnlib.errors import UserError, did_you_mean
from dnnlib.files import write_json
from torch_utils.device import peak_memory_mb
from training.acceleration import Acceleration
from training.benchmark import operations, work
from training.benchmark.measure import (
    Machine,
    Row,
    Spread,
    flops,
    in_own_process,
    machine,
    repeat,
    start_process,
)
from training.config import TrainConfig
from training.editing.settings import EditSettings
from training.network_source import BUNDLED, BUNDLED_PRIOR

GROUPS = ("operations", "views", "training", "edit")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """What to measure, and how often."""

    groups: tuple[str, ...] = GROUPS
    config: Path = ROOT / "configs" / "portraits-64.yaml"
    raw_resolutions: tuple[int, ...] = ()  # of the views; empty: the configuration's
    batch: int | None = None  # pictures of a training step; None: the configuration's
    network: Path = BUNDLED
    prior: str = str(BUNDLED_PRIOR)
    controlnet: str | None = None  # None: the prior's own
    settings: tuple[str, ...] = ()  # 'field=value' of TrainConfig or EditSettings; a name of both is for both
    repetitions: int = 5
    threads: int | None = None
    device: str = "cpu"
    acceleration: Acceleration = Acceleration()  # of views and edits
    shrink: int = 1  # divides the sizes of the operations and of the machine's own measurement, for tests

    def train_config(self) -> TrainConfig:
        """Of views and training."""
        return config_files.load(TrainConfig, self.config, self._settings_of(TrainConfig))

    def edit_settings(self) -> EditSettings:
        return config_files.load(EditSettings, {}, self._settings_of(EditSettings))

    def check(self) -> None:
        """Raises UserError where a setting is none of either's."""
        known = _names(TrainConfig) + _names(EditSettings)
        for setting in self.settings:
            if _first_name(setting) not in known:
                raise UserError(f"{setting}: unknown key; {did_you_mean(_first_name(setting), known)}")
        self.train_config(), self.edit_settings()

    def _settings_of(self, cls: type) -> list[str]:
        return [setting for setting in self.settings if _first_name(setting) in _names(cls)]


def _names(cls: type) -> list[str]:
    return [field.name for field in fields(cls)]


def _first_name(setting: str) -> str:
    """'a' of 'a.b=c'."""
    return setting.partition("=")[0].partition(".")[0].strip()


def run(options: Options, say: Callable[[str], None], path: Path | None = None) -> tuple[Machine, list[Row]]:
    """Measures everything; ``say`` gets a line of the table at a time, and ``path`` all figures so far."""
    options.check()
    start_process(options.threads)
    found = machine(options.device, options.repetitions, shrink=options.shrink)
    product, convolution = (
        " (TF32)" if tf32 else "" for tf32 in (found.tf32_product, found.tf32_convolution)
    )
    say(
        f"{found.device}, {found.threads} threads, torch {found.torch}: "
        f"product {found.product / 1e9:.0f} GFLOP/s{product}, "
        f"convolution {found.convolution / 1e9:.0f} GFLOP/s{convolution}, "
        f"memory {found.memory / 1e9:.1f} GB/s"
    )
    say("MB: of an operation what a run takes beside its inputs, of other work the process's largest so far")
    say(HEADER)
    rows = []
    for group in options.groups:
        for row in in_own_process(_group, options, group, found, threads=options.threads):
            rows.append(row)
            say(line(row))
            if path is not None:
                save(path, options, found, rows)
    return found, rows


def save(path: Path, options: Options, found: Machine, rows: Sequence[Row]) -> None:
    """Writes all figures as JSON."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    write_json(path, {"options": given, "machine": asdict(found), "rows": [row.to_dict() for row in rows]})


HEADER = (
    "| group | what | median s | lowest - highest | per item s | of the bound | MB "
    "| reference s | lowest - highest | MB | gain |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    """A line of a Markdown table."""
    cells = (
        row.group,
        row.name,
        *_seconds(row.seconds),
        f"{row.seconds.median / row.items:.4g}",
        f"{row.fraction:.0%} {row.bound}" if row.fraction is not None else "",
        _megabytes(row.peak_mb),
        *_seconds(row.reference),
        _megabytes(row.reference_peak_mb),
        f"{row.gain:.2f}" if row.gain is not None else "",
    )
    return f"| {' | '.join(cells)} |"


def _seconds(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "", ""
    return f"{spread.median:.4g}", f"{spread.lowest:.4g} - {spread.highest:.4g}"


def _megabytes(peak: float | None) -> str:
    return "" if peak is None else f"{peak:.0f}"


def _group(options: Options, group: str, found: Machine) -> Iterator[Row]:
    return _operation_rows(options, found) if group == "operations" else _work_rows(options, group, found)


def _operation_rows(options: Options, found: Machine) -> Iterator[Row]:
    there = operations.available(options.device)
    for case in operations.cases(options.shrink, options.device):
        if case.operation in there:
            yield from operations.measure(case, options.repetitions, options.device, found)


def _work_rows(options: Options, group: str, found: Machine) -> Iterator[Row]:
    config, device = options.train_config(), options.device
    if group == "views":
        resolutions = options.raw_resolutions or (config.generator.raw_resolution,)
        works = work.views(config, device, resolutions, options.acceleration)
    elif group == "training":
        works = work.training_steps(config, device, batch=options.batch or config.batch)
    else:
        models = options.network, options.prior, options.controlnet
        works = work.edit_steps(*models, options.edit_settings(), device, options.acceleration)
    for each in works:
        seconds = repeat(each.run, options.repetitions, device)
        peak = peak_memory_mb(device)  # before the references run, which need more
        ideal = flops(each.counted or each.run) / found.convolution
        yield Row(group, each.name, seconds, each.items, None, ideal, "convolution", peak)
