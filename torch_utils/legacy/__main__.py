"""``python -m torch_utils.legacy convert IN.pkl OUT.safetensors``: a script, see the package's docstring."""

from __future__ import annotations

from pathlib import Path

import click

from dnnlib.errors import user_errors
from training.published import convert as convert_published

_FILE = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Published pickles of the StyleGAN family, read without running anything in them."""


@main.command()
@click.argument("source", metavar="IN.pkl", type=_FILE)
@click.argument("target", metavar="OUT.safetensors", type=_FILE)
@user_errors
def convert(source: Path, target: Path) -> None:
    """Write the generator of a MaTe3D or EG3D pickle as safetensors, for --network."""
    config = convert_published(source, target).config
    masks = f"{config.parts} classes ({config.labels})" if config.parts else "no parts, so no masks (EG3D)"
    click.echo(
        f"wrote {target}: {config.resolution} x {config.resolution}, {masks}, "
        f"{config.samples_coarse} + {config.samples_fine} samples from {config.camera.near:g} to "
        f"{config.camera.far:g}, pivot {config.camera.pivot}"
    )


if __name__ == "__main__":
    main()
