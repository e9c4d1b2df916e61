"""Portraits of seeds: `python generate.py --seeds 0-7 --trunc 0.7 --outdir DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from dnnlib.errors import user_errors
from dnnlib.options import PITCH, TRUNCATION, YAW, OutFolder
from torch_utils.device import choose_device
from training.acceleration import Acceleration, acceleration_options
from training.gallery import generate, parse_seeds
from training.network_source import network_option, warn_of_edit


@click.command(context_settings={"show_default": True})
@click.option("--seeds", default="0-7", help="As 0-7 or 1,5,9.")
@click.option("--outdir", type=OutFolder(), default=Path("out/generate"))
@network_option
@click.option(
    "--trunc", type=TRUNCATION, default=0.7, help="Truncation: 0 is the mean face, 1 the full variety."
)
@click.option("--yaw", type=YAW, default=0.0, help="Radians, 0 is frontal.")
@click.option("--pitch", type=PITCH, default=0.0, help="Radians, 0 is frontal.")
@click.option("--video", is_flag=True, help="A turntable of each (.mp4).")
@click.option("--mesh", is_flag=True, help="The surface of each, with vertex colours (.ply, .glb).")
@click.option("--device", help="cpu, cuda, cuda:1 ...", show_default="cuda where there is one")
@acceleration_options
@user_errors
def main(
    seeds: str,
    outdir: Path,
    network: Path,
    trunc: float,
    yaw: float,
    pitch: float,
    video: bool,
    mesh: bool,
    device: str | None,
    half: bool,
    compiled: bool,
) -> None:
    """Write image, mask, normals and depth of each seed, and a grid of all."""
    numbers = parse_seeds(seeds)
    warn_of_edit(network)
    generate(
        network,
        numbers,
        outdir,
        truncation=trunc,
        yaw=yaw,
        pitch=pitch,
        video=video,
        mesh=mesh,
        device=choose_device(device),
        acceleration=Acceleration(compile=compiled, half=half),
        say=click.echo,
    )
    click.echo(f"look at {outdir / 'grid.png'}")


if __name__ == "__main__":
    main()
