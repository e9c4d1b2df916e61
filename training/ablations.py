"""What each part of the training brings: ``python -m training.ablations --data runs/portraits64``.

Short runs of one configuration, one after the other, each without one thing; then every generator is scored
as ``evaluate.py quality`` and ``evaluate.py geometry`` do, on the last tenth of the set, which the runs have
seen too: the scores compare the runs, and say little of new portraits. The first run is made twice, with
another seed: a difference that is no larger than theirs says nothing. A run that was stopped goes on, a
finished one stays.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from datasets.labels import label_set
from dnnlib.errors import UserError, named, user_errors
from dnnlib.files import atomic_path
from dnnlib.options import OutFolder
from training import launch
from training.generator import Generator
from training.metrics import evaluation
from training.metrics.evaluation import GeometryOptions
from training.metrics.tables import Stopwatch, write_scores
from training.network_source import open_network
from training.pictures import look, sheet, tile, tile_side, to_uint8, write_png
from training.scene import camera_at, class_map, latent_of_seed, normal_picture, scene_of, ws_of_latent
from training.snapshots import find_states

_DONE = "finished"  # an empty file in the folder of a run that needs no more training
_SHOWN = (0, 1)  # seeds on the picture
_YAW = 0.4  # radians: from the side wrong surfaces show


@dataclass(frozen=True)
class Ablation:
    """A run that differs from the first one."""

    name: str
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return self.name.lower().replace(", ", "-").replace(" ", "-")


ABLATIONS = (
    Ablation("full"),
    Ablation("full, another seed", ("seed=1",)),
    Ablation("no SDF consistency", ("loss.sdf_consistency=0",)),
    Ablation("no density consistency", ("loss.density_consistency=0",)),
    Ablation("no sphere start", ("sphere.steps=0",)),
    Ablation("no density regularisation", ("loss.density_regularisation=0",)),
    Ablation("published marching", ("generator.marching=published",)),
)
SCORES = ("fid", "swd", "mask_iou", "depth_warp", "mask_agreement", "identity", "eikonal")


def chosen_ablations(text: str | None) -> list[Ablation]:
    """Ablations by the names of their folders, separated by commas; None: all."""
    return named("--only", text, {each.folder: each for each in ABLATIONS})


def train(ablation: Ablation, cfg: str, data: str, folder: Path, overrides: Sequence[str]) -> None:
    """The run, or what is left of it."""
    if (folder / _DONE).exists():
        return
    resume = folder if folder.is_dir() and find_states(folder) else None
    given = (*overrides, *ablation.overrides)
    run = launch.resolve(cfg=cfg, outdir=folder, resume=resume, overrides=given, data=data)
    if launch.start(run):
        (folder / _DONE).touch()


def score(generator: Generator, data: Path) -> dict[str, Any]:
    """Quality and geometry in one row."""
    halves = evaluation.true_halves(data, None, generator.config)
    judges = evaluation.judges("auto", generator.config.labels, say=click.echo)
    quality = evaluation.evaluate_quality(generator, halves, judges, references=False, say=click.echo)
    shape = evaluation.evaluate_geometry(
        generator,
        GeometryOptions(seeds=tuple(range(8)), inversions=0, references=False),
        views=None,
        held_out=None,
        embed=evaluation.identifier(generator.config.labels, say=click.echo),
        say=click.echo,
    )
    return {**quality["network"], **shape["network"]}


def markdown(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row per ablation."""
    lines = [f"| run | {' | '.join(SCORES)} |", "| --- |" + " --- |" * len(SCORES)]
    for name, values in scores.items():
        cells = ("" if values.get(key) is None else f"{values[key]:.4g}" for key in SCORES)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture_row(generator: Generator) -> list[np.ndarray]:
    """Image, mask and normals of some seeds, from the front and from one side."""
    labels = label_set(generator.config.labels)
    side, row = tile_side(generator.config.resolution), []
    for seed in _SHOWN:
        scene = scene_of(generator, ws_of_latent(generator, latent_of_seed(generator, seed), 0.7))
        for yaw in (0.0, _YAW):
            view = look(scene, camera_at(generator, yaw, 0.0), normals=True)
            row.append(tile(to_uint8(view.image[0]), side))
            if yaw == 0.0:
                row.append(tile(labels.colourise(class_map(view)[0].cpu().numpy()), side, nearest=True))
            row.append(tile(to_uint8(normal_picture(view)[0]), side))
    return row


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A portrait set.")
@click.option("--cfg", default="portraits-64")
@click.option("--outdir", type=OutFolder(), default=Path("runs/ablations"))
@click.option(
    "--warm-kimg", type=click.FloatRange(min=0, min_open=True), default=3.0, help="Of warm start, each run."
)
@click.option("--kimg", type=click.FloatRange(min=0), default=1.5, help="Of adversarial training after it.")
@click.option("--only", help="Some runs, by the names of their folders, as full,no-sphere-start.")
@user_errors
def main(data: Path, cfg: str, outdir: Path, warm_kimg: float, kimg: float, only: str | None) -> None:
    """Train and score the ablations; writes table.md, scores.json and sheet.png into --outdir."""
    watch, chosen = Stopwatch(), chosen_ablations(only)
    overrides = (  # what takes long in the configuration is made as short as the runs are
        f"kimg={kimg}",
        f"warm_start.kimg={warm_kimg}",
        f"warm_start.beta_kimg={warm_kimg / 2}",
        f"warm_start.whiten_kimg={warm_kimg / 2}",
        f"schedule.generator_delay_kimg={kimg / 6}",
        "ema_kimg=1",
        "snapshot_kimg=1",
    )
    scores, rows = {}, []
    for ablation in chosen:
        folder = outdir / ablation.folder
        click.echo(f"{ablation.name}: {' '.join(ablation.overrides) or 'the configuration as it is'}")
        train(ablation, cfg, str(data), folder, overrides)
        if not (folder / _DONE).exists():
            raise UserError("stopped; the same command goes on")
        generator = open_network(folder, "cpu")
        scores[ablation.name] = score(generator, data)
        rows.append(picture_row(generator))
    table = markdown(scores)
    click.echo(table)
    with atomic_path(outdir / "table.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    command = shlex.join(["python", "-m", "training.ablations", *sys.argv[1:]])
    write_scores(outdir / "scores.json", command, scores, watch, "cpu", data=str(data), cfg=cfg)
    write_png(outdir / "sheet.png", sheet(rows))
    click.echo(f"written to {outdir}: table.md, scores.json, sheet.png")


if __name__ == "__main__":
    main()
