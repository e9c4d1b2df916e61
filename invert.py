"""Make a scene of a picture, to edit it: `python invert.py --image me.png --mask me-mask.png`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from dnnlib import config as config_files
from dnnlib.errors import UserError, user_errors
from dnnlib.files import free_folder
from dnnlib.options import PITCH, YAW, OutFolder
from torch_utils.device import choose_device
from training.editing.inversion import InversionSettings
from training.editing.photo import PhotoOptions, run_inversion
from training.editing.report import RESULTS
from training.network_source import network_option
from training.stopping import terminated_as_interrupted

_FILE = click.Path(path_type=Path)


@click.command(context_settings={"show_default": True})
@click.option("--image", type=_FILE, required=True, help="The picture: square, framed as the network's are.")
@click.option("--mask", type=_FILE, help="Its mask (PNG).", show_default="read by the bundled reader")
@click.option(
    "--outdir",
    type=OutFolder(),
    default=Path("out/invert"),
    help="Folder for the results; if it holds some, a numbered one beside it.",
)
@network_option
@click.option(
    "--encoder",
    type=_FILE,
    help="Reads the first latent off the picture: a run's encoder.safetensors.",
    show_default="the one of the bundled network, for others the mean",
)
@click.option("--yaw", type=YAW, help="Where it was taken from: radians, 0 is frontal.", show_default="found")
@click.option("--pitch", type=PITCH, help="The same, up and down.", show_default="found")
@click.option("--steps", type=click.IntRange(min=1), default=200, help="Steps that fit the latent.")
@click.option("--tune", type=click.IntRange(min=0), default=200, help="Steps that tune the generator to it.")
@click.option("--device", help="cpu, cuda, cuda:1 ...", show_default="cuda where there is one")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A=B",
    help="Any field of InversionSettings in training/editing/inversion.py.",
)
@user_errors
def main(
    image: Path,
    mask: Path | None,
    outdir: Path,
    network: Path,
    encoder: Path | None,
    yaw: float | None,
    pitch: float | None,
    steps: int,
    tune: int,
    device: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Find the latent and the camera of a picture, and tune the generator to it.

    \b
    python invert.py --image me.png --mask me-mask.png --outdir out/me
    """
    if (yaw is None) != (pitch is None):
        raise UserError("give both --yaw and --pitch, or neither, then they are sought")
    outdir = free_folder(outdir, RESULTS)
    chosen = {"fit_steps": steps, "tune_steps": tune}
    with terminated_as_interrupted():
        report = run_inversion(
            PhotoOptions(
                network=network,
                image=image,
                mask=mask,
                outdir=outdir,
                pose=None if yaw is None else (yaw, pitch),
                encoder=encoder,
                settings=config_files.load(InversionSettings, chosen, overrides),
                device=choose_device(device),
                command=shlex.join(["python", *sys.argv]),
            ),
            say=click.echo,
        )
    click.echo(
        f"yaw {report.yaw:.2f}, pitch {report.pitch:.2f}; {report.psnr_latent:.1f} dB by the latent, "
        f"{report.psnr:.1f} dB tuned, {report.seconds:.0f} s; look at {outdir / 'views.png'}, then: "
        f"{report.edit} --export-mask {shlex.quote(str(outdir / 'm.png'))}"
    )


if __name__ == "__main__":
    main()
