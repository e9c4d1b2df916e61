"""Train the small diffusion prior on a portrait set: `python train_prior.py --data DIR --outdir DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from dnnlib import config as config_files
from dnnlib.errors import user_errors
from training.prior.config import PriorConfig
from training.prior.train import train_prior


@click.command(context_settings={"show_default": True})
@click.option(
    "--data", type=click.Path(), help="Portrait set: images/, masks/, normals/, dataset.json with captions."
)
@click.option(
    "--outdir", type=click.Path(path_type=Path), required=True, help="Run folder; the prior is in prior/."
)
@click.option("--vae-kimg", type=float, help="Length of the autoencoder's training in thousands of pictures.")
@click.option("--kimg", type=float, help="Length of the diffusion training in thousands of pictures.")
@click.option("--batch", type=int, help="Pictures per step of the diffusion training.")
@click.option("--lr", type=float, help="Learning rate of the diffusion training.")
@click.option(
    "--minutes", type=float, help="End cleanly after so much training, if kimg are not reached before."
)
@click.option("--seed", type=int, help="Initial weights and everything random in the training.")
@click.option("--workers", type=int, help="Processes that read the data set.")
@click.option(
    "--resume", type=click.Path(path_type=Path), help="Run folder or state.safetensors to go on from."
)
@click.option(
    "--config", "config_path", type=click.Path(), help="config.json of an earlier run to start from."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Any field of training/prior/config.py."
)
@user_errors
def main(
    data: str | None,
    outdir: Path,
    vae_kimg: float | None,
    kimg: float | None,
    batch: int | None,
    lr: float | None,
    minutes: float | None,
    seed: int | None,
    workers: int | None,
    resume: Path | None,
    config_path: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Train a small latent diffusion model on portraits, their normal maps, masks and captions."""
    options = {
        "data": data,
        "autoencoder.optimiser.kimg": vae_kimg,
        "diffusion.optimiser.kimg": kimg,
        "diffusion.optimiser.batch": batch,
        "diffusion.optimiser.lr": lr,
        "minutes": minutes,
        "seed": seed,
        "workers": workers,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    config = config_files.load(PriorConfig, config_path or {}, [*given, *overrides])
    folder = train_prior(config, outdir, resume)
    click.echo(f"prior: {folder}")


if __name__ == "__main__":
    main()
