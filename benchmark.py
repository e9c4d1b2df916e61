"""Measure this machine and this project on it: `python benchmark.py --json out/benchmark.json`."""

from __future__ import annotations

from pathlib import Path

import click

from dnnlib.errors import UserError, user_errors
from dnnlib.files import check_writable
from torch_utils.device import choose_device
from training.acceleration import Acceleration
from training.benchmark.run import GROUPS, ROOT, Options, run


@click.command(context_settings={"show_default": True})
@click.option(
    "--only", type=click.Choice(GROUPS), multiple=True, help="Groups to measure.", show_default="all"
)
@click.option("--cfg", default="portraits-64", help="Whose networks: a name in configs/, or a YAML file.")
@click.option(
    "--raw",
    type=click.IntRange(min=1),
    multiple=True,
    help="Raw resolutions of the views.",
    show_default="of --cfg",
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Pictures of a training step.", show_default="of --cfg"
)
@click.option("--network", help="Generator of the edit, as of edit.py.", show_default="the bundled one")
@click.option("--prior", help="Prior of the edit, as of edit.py.", show_default="the bundled one")
@click.option("--controlnet", help="ControlNet of the edit, as of edit.py.", show_default="the prior's")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="A.B=C",
    help="Any field of training/config.py (views, training) or training/editing/settings.py (edits).",
)
@click.option("--repetitions", type=click.IntRange(min=1), default=5)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the CPU.", show_default="torch's own")
@click.option("--shrink", type=click.IntRange(1, 64), default=1, help="Divide sizes, to try it out.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write all figures here as well.")
@click.option("--half", is_flag=True, help="Views and edits with --half of generate.py; CUDA only.")
@click.option("--compile", "compiled", is_flag=True, help="Views and edits with --compile of generate.py.")
@click.option("--device", help="cpu, cuda, cuda:1 ...", show_default="cuda where there is one")
@user_errors
def main(
    only: tuple[str, ...],
    cfg: str,
    raw: tuple[int, ...],
    batch: int | None,
    network: str | None,
    prior: str | None,
    controlnet: str | None,
    settings: tuple[str, ...],
    repetitions: int,
    threads: int | None,
    shrink: int,
    path: Path | None,
    half: bool,
    compiled: bool,
    device: str | None,
) -> None:
    """Time views, training steps, an edit's step and each native operation, and compare them with the speed
    of this machine's matrix products, convolutions and memory."""
    config = Path(cfg) if Path(cfg).suffix in (".yaml", ".yml") else ROOT / "configs" / f"{cfg}.yaml"
    if not config.is_file():
        raise UserError(f"--cfg {cfg}: {config} is not there")
    chosen, acceleration = choose_device(device), Acceleration(compile=compiled, half=half)
    acceleration.check(chosen)
    options = Options(
        groups=only or GROUPS,
        config=config,
        raw_resolutions=raw,
        batch=batch,
        network=Path(network) if network else Options.network,
        prior=prior or Options.prior,
        controlnet=controlnet,
        settings=settings,
        repetitions=repetitions,
        threads=threads,
        device=chosen,
        acceleration=acceleration,
        shrink=shrink,
    )
    if path is not None:
        check_writable(path)  # before the work whose results go there
    run(options, click.echo, path)
    if path is not None:
        click.echo(f"wrote {path}")


if __name__ == "__main__":
    main()
