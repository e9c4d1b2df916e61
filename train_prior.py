"""Train the small diffusion prior on a portrait set: `python train_prior.py --data DIR --outdir DIR`.

Or only a mask ControlNet for a diffusion model that exists: `--controlnet-only --base FOLDER_OR_HUB_NAME`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from dnnlib import config as config_files
from dnnlib.errors import UserError, user_errors
from dnnlib.options import OutFolder
from torch_utils.device import choose_device
from training.prior.config import ControlNetConfig, PriorConfig
from training.prior.controlnet import train_controlnet
from training.prior.loop import CONFIG_FILE, Stopped
from training.prior.models import PRIOR_FILE
from training.prior.train import train_prior


@click.command(context_settings={"show_default": True})
@click.option(
    "--data", type=click.Path(), help="Portrait set: images/, masks/, normals/, dataset.json with captions."
)
@click.option(
    "--outdir",
    type=OutFolder(),
    help="Run folder; the prior is in prior/.",
    show_default="the run that --resume names",
)
@click.option(
    "--controlnet-only", is_flag=True, help="Train a mask ControlNet for --base, which stays as it is."
)
@click.option(
    "--base",
    help="A small prior to start from; its autoencoder stays unless --vae-kimg is given. Of "
    "--controlnet-only: its diffusion model, a diffusers folder or a Hub name, as stable-diffusion-v1-5.",
)
@click.option("--masks", type=click.Path(), help="Masks of --controlnet-only, when --data has images alone.")
@click.option("--device", help="cpu, cuda, cuda:1 ...", show_default="cuda where there is one")
@click.option("--vae-kimg", type=float, help="Length of the autoencoder's training in thousands of pictures.")
@click.option("--kimg", type=float, help="Length of the diffusion or ControlNet training, likewise.")
@click.option("--batch", type=int, help="Pictures per step of that training.")
@click.option("--lr", type=float, help="Learning rate of that training.")
@click.option(
    "--minutes", type=float, help="End cleanly after so much training, if kimg are not reached before."
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Initial weights and everything random in the training."
)
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
    outdir: Path | None,
    controlnet_only: bool,
    base: str | None,
    masks: str | None,
    device: str | None,
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
    if outdir is None:
        if resume is None:
            raise UserError("--outdir is missing: give the folder of the run")
        outdir = resume if resume.is_dir() else resume.parent
    if resume and not config_path:
        saved = (resume if resume.is_dir() else resume.parent) / CONFIG_FILE
        config_path = str(saved) if saved.is_file() else None
    stage = "optimiser" if controlnet_only else "diffusion.optimiser"
    options = {
        "data": data,
        f"{stage}.kimg": kimg,
        f"{stage}.batch": batch,
        f"{stage}.lr": lr,
        "minutes": minutes,
        "seed": seed,
        "workers": workers,
    }
    wrong = {"--vae-kimg": vae_kimg} if controlnet_only else {"--masks": masks}
    if not_for_this := [name for name, value in wrong.items() if value is not None]:
        kind = "not for" if controlnet_only else "for"
        raise UserError(f"{not_for_this[0]} is {kind} --controlnet-only")
    if controlnet_only:
        if not base:
            raise UserError("--controlnet-only needs --base: a diffusers folder, or stable-diffusion-v1-5")
        config = config_files.load(
            ControlNetConfig, config_path or {}, [*_given({**options, "masks": masks}), *overrides]
        )
        chosen = choose_device(device)
        _run("ControlNet", outdir, lambda: train_controlnet(config, base, outdir, resume, chosen))
        return
    options["autoencoder.optimiser.kimg"] = 0.0 if base and vae_kimg is None else vae_kimg
    config = config_files.load(PriorConfig, config_path or {}, [*_given(options), *overrides])
    if base and not (Path(base) / PRIOR_FILE).is_file():
        raise UserError(
            f"--base {base}: no small prior, there is no {PRIOR_FILE}; --controlnet-only takes others"
        )
    start = Path(base) if base else None
    _run("prior", outdir, lambda: train_prior(config, outdir, resume, start, choose_device(device)))


def _run(what: str, outdir: Path, train: Callable[[], Path]) -> None:
    """Trains, and says where the result is or how to go on."""
    try:
        click.echo(f"{what}: {train()}")
    except Stopped:
        click.echo(f"stopped; go on with the same command and --resume {outdir}")


def _given(options: dict[str, object]) -> list[str]:
    """Overrides of the options that were given."""
    return [f"{name}={value}" for name, value in options.items() if value is not None]


if __name__ == "__main__":
    main()
