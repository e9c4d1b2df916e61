"""Trains a generator on pictures with masks and cameras. See docs/train.md."""

from __future__ import annotations

from pathlib import Path

import click

from dnnlib.errors import user_errors
from dnnlib.options import SEED, Finite, OutFolder
from training import launch


@click.command(help=__doc__)
@click.option(
    "--cfg",
    help="ffhq-mask, catmask-hq, portraits-64, portraits-128, or a YAML file such as a run's config.yaml.",
)
@click.option("--data", help="Folder or zip of images with dataset.json, or a portrait-set folder.")
@click.option("--masks", help="Folder or zip of masks with the images' stems; a portrait set has its own.")
@click.option(
    "--outdir",
    type=OutFolder(),
    help="Where results go. [default: runs/CFG, or the run that --resume names]",
)
@click.option("--kimg", type=float, help="Length of the adversarial phase, thousand images.")
@click.option("--batch", type=int, help="Images per step over all processes.")
@click.option("--gamma", type=float, help="Weight of R1.")
@click.option(
    "--aug", type=click.Choice(["none", "fixed", "ada"]), help="Augmentation of what discriminators see."
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Run folder or training state to go on from, or a generator's .safetensors to start or grow from.",
)
@click.option(
    "--fresh-judges",
    is_flag=True,
    help="With --resume: the adversarial phase from its start, with new discriminators and a new parser.",
)
@click.option("--seed", type=SEED, help="Random seed.")
@click.option("--workers", type=int, help="Processes that read pictures.")
@click.option("--minutes", type=Finite(min=0), help="Stop in good order after so many minutes.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Any field of training/config.py.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and its cost, then stop.")
@user_errors
def main(outdir: Path | None, resume: Path | None, minutes: float | None, dry_run: bool, **options) -> None:
    run = launch.resolve(outdir=outdir, resume=resume, **options)
    if dry_run:
        click.echo(launch.dry_run(run))
    else:
        launch.start(run, minutes=minutes)


if __name__ == "__main__":
    main()
