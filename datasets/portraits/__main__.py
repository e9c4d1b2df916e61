"""`python -m datasets.portraits`: render the synthetic portrait set."""

from __future__ import annotations

import os
from pathlib import Path

import click

from dnnlib.errors import UserError, user_errors


@click.command()
@click.option("--count", type=click.IntRange(min=1), required=True, help="Number of pictures.")
@click.option(
    "--size", type=click.IntRange(32, 1024), default=128, show_default=True, help="Pixels per side."
)
@click.option(
    "--outdir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where to write."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, other people."
)
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="First index.")
@click.option(
    "--samples", type=click.IntRange(1, 4096), default=24, show_default=True, help="Light paths per pixel."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="cores",
    help="Processes.",
)
@user_errors
def main(count: int, size: int, outdir: Path, seed: int, start: int, samples: int, workers: int) -> None:
    """Render COUNT synthetic portraits with masks, normals, depth, cameras, attributes and captions.

    A run that was stopped goes on where it was; the same seed and index give the same picture.
    """
    from .run import Settings, run  # needs the packages of the `portraits` extra

    complete, lost = run(outdir, count, Settings(size=size, samples=samples, seed=seed), workers, start)
    if not complete:
        reason = next(iter(lost.values()), "there is nothing to draw")
        raise UserError(f"not one picture could be drawn, see {outdir / 'lost.json'}: {reason}")
    click.echo(f"{complete} pictures in {outdir}" + (f", {len(lost)} lost (see lost.json)" if lost else ""))


if __name__ == "__main__":
    main()
