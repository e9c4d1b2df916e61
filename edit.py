"""Edit a portrait with a repainted mask and a sentence: `python edit.py --mask m.png --prompt "..."`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from dnnlib import config as config_files
from dnnlib.errors import UserError, user_errors
from dnnlib.files import free_folder
from dnnlib.options import PITCH, SEED, TRUNCATION, YAW, Finite, OutFolder, PictureFile
from torch_utils.device import choose_device
from training.acceleration import Acceleration, acceleration_options
from training.distillation import OBJECTIVES
from training.editing.report import RESULTS
from training.editing.session import EditOptions, SourceOptions, export_mask, run_edit
from training.editing.settings import EditSettings
from training.network_source import BUNDLED, BUNDLED_PRIOR, network_option, warn_of_edit
from training.prior import PriorMemory
from training.stopping import terminated_as_interrupted

_FILE = click.Path(path_type=Path)


@click.command(context_settings={"show_default": True})
@click.option("--mask", type=_FILE, help="The portrait's mask, repainted (PNG; get one with --export-mask).")
@click.option("--prompt", help="What the edited portrait should show.")
@click.option(
    "--outdir",
    type=OutFolder(),
    default=Path("out/edit"),
    help="Folder for the results; if it holds some, a numbered one beside it.",
)
@network_option
@click.option("--prior", help="Diffusion prior: a diffusers folder or a Hub name.", show_default="bundled")
@click.option("--controlnet", help="ControlNet trained on masks, when the prior's folder has none.")
@click.option("--attention-slicing", is_flag=True, help="Less memory for the prior, more time.")
@click.option("--vae-tiling", is_flag=True, help="Less memory for the prior's autoencoder, slightly inexact.")
@click.option("--seed", type=SEED, help="Whose portrait: the seed of its latent.", show_default="0")
@click.option("--latent", type=_FILE, help="Its latent instead: .npz with ws, w or z.")
@click.option("--trunc", type=TRUNCATION, default=0.7, help="Truncation of the latent.")
@click.option("--yaw", type=YAW, default=0.0, help="Camera of the mask: radians, 0 is frontal.")
@click.option("--pitch", type=PITCH, default=0.0, help="Camera of the mask: radians, 0 is frontal.")
@click.option(
    "--export-mask",
    type=PictureFile((".png",)),  # soft formats would mix the classes' colours
    help="Write the portrait's mask here, to repaint, and stop.",
)
@click.option("--classes", help="Classes to edit, as hair,hat.", show_default="where the masks differ")
@click.option("--source-prompt", default="a portrait of a person", help="What the portrait shows now.")
@click.option("--objective", type=click.Choice([each.name for each in OBJECTIVES]), default="cdgt")
@click.option("--steps", type=click.IntRange(min=1), default=200)
@click.option("--guidance", type=Finite(min=0), default=7.5, help="How strongly the prompt pulls.")
@click.option("--seed-noise", type=SEED, default=0, help="Seed of the optimisation's noise and views.")
@click.option("--device", help="cpu, cuda, cuda:1 ...", show_default="cuda where there is one")
@acceleration_options
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Any field of training/editing/settings.py."
)
@user_errors
def main(
    mask: Path | None,
    prompt: str | None,
    outdir: Path,
    network: Path,
    prior: str | None,
    controlnet: str | None,
    attention_slicing: bool,
    vae_tiling: bool,
    seed: int | None,
    latent: Path | None,
    trunc: float,
    yaw: float,
    pitch: float,
    export_mask: Path | None,
    classes: str | None,
    source_prompt: str,
    objective: str,
    steps: int,
    guidance: float,
    seed_noise: int,
    device: str | None,
    half: bool,
    compiled: bool,
    overrides: tuple[str, ...],
) -> None:
    """Edit a 3D portrait: repaint its mask, say what it should become.

    \b
    python edit.py --seed 3 --export-mask m.png        writes m.png, to repaint
    python edit.py --seed 3 --mask m.png --prompt "a woman wearing a red hat"
    """
    if latent is not None and seed is not None:
        raise UserError(f"--seed {seed} and --latent {latent} are two portraits: give one of them")
    seed = seed or 0
    acceleration = Acceleration(compile=compiled, half=half)
    source = SourceOptions(network, seed, latent, trunc, yaw, pitch, choose_device(device), acceleration)
    if export_mask is not None:
        warn_of_edit(network)
        _export(source, export_mask)
        return
    if mask is None or not (prompt and prompt.strip()):
        which = "--mask" if mask is None else "--prompt"
        raise UserError(
            f"{which} is missing: `python edit.py --seed {seed} --export-mask m.png` writes a mask,"
            f' then `python edit.py --seed {seed} --mask m.png --prompt "a person wearing a red hat"` edits'
        )
    warn_of_edit(network)
    outdir = free_folder(outdir, RESULTS)
    chosen = {"objective": objective, "steps": steps, "guidance": guidance, "seed": seed_noise}
    options = EditOptions(
        mask=mask,
        prompt=prompt,
        outdir=outdir,
        prior=prior or str(BUNDLED_PRIOR),
        controlnet=controlnet,
        prior_memory=PriorMemory(attention_slicing=attention_slicing, vae_tiling=vae_tiling),
        source_prompt=source_prompt,
        classes=tuple(name.strip() for name in classes.split(",") if name.strip()) if classes else (),
        refuse_absent=True,
        settings=config_files.load(EditSettings, chosen, overrides),
        command=shlex.join(["python", *sys.argv]),
    )
    with terminated_as_interrupted():
        report = run_edit(source, options, say=click.echo)
    click.echo(
        f"mask_iou {report.mask_iou:.2f}, psnr_outside_region {report.psnr_outside_region:.1f} dB, "
        f"{report.seconds['total']:.0f} s; look at {outdir / 'views.png'} and {outdir / 'turntable.mp4'}"
    )


def _export(source: SourceOptions, path: Path) -> None:
    picture = export_mask(source, path)
    standard = SourceOptions(BUNDLED)
    given = {"--latent": source.latent} if source.latent else {"--seed": source.seed}
    others = {
        "--trunc": (source.truncation, standard.truncation),
        "--yaw": (source.yaw, standard.yaw),
        "--pitch": (source.pitch, standard.pitch),
        "--network": (source.network, standard.network),
    }
    given |= {name: value for name, (value, usual) in others.items() if value != usual}
    words = shlex.join(str(word) for pair in {**given, "--mask": path}.items() for word in pair)
    click.echo(
        f"wrote {path} and {picture}; repaint {path.name} without soft edges, then: "
        f'python edit.py {words} --prompt "..."'
    )


if __name__ == "__main__":
    main()
