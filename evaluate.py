"""Measure generators, edits, priors: `python evaluate.py quality | geometry | edits | prior --json FILE`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import click

from datasets.labels import label_set
from datasets.portraits import BUNDLED, BUNDLED_VIEWS
from dnnlib import config as config_files
from dnnlib.errors import UserError, user_errors
from dnnlib.files import check_writable
from dnnlib.options import SEED, TRUNCATION, Finite, OutFolder
from torch_utils.device import choose_device
from training.distillation import OBJECTIVES
from training.editing.settings import EditSettings
from training.gallery import parse_seeds
from training.generator import Generator
from training.judges.reader import Reader
from training.metrics import evaluation
from training.metrics.edit_cases import FIRST_SEED
from training.metrics.edit_runs import EditRun, chosen_cases, evaluate_edits
from training.metrics.edits import EditJudges, score_true
from training.metrics.evaluation import GeometryOptions
from training.metrics.features import NAMES
from training.metrics.fitting import Fit
from training.metrics.portrait_set import HELD_OUT, PortraitSet, read_set
from training.metrics.prior_samples import Sampling, evaluate_prior
from training.metrics.tables import Stopwatch, table, write_scores
from training.network_source import BUNDLED as BUNDLED_NETWORK
from training.network_source import BUNDLED_PRIOR, find_network, open_network
from training.prior import load_prior

_FILE = click.Path(path_type=Path)


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Score a generator (quality, geometry), whole edits, or a diffusion prior, beside what they are compared
    with."""


@user_errors
def _writable(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Says that a file cannot be written before the work whose results would go there."""
    if path is not None:
        check_writable(path)
    return path


def _device_and_json(command: Callable) -> Callable:
    """Options that all have."""
    for option in (
        click.option("--device", help="cpu, cuda, cuda:1 ...", show_default="cuda where there is one"),
        click.option(
            "--json",
            "json_path",
            type=_FILE,
            callback=_writable,
            help="Write the scores here.",
            show_default="no file",
        ),
    ):
        command = option(command)
    return command


def _common(command: Callable) -> Callable:
    """Options of those that look at a generator."""
    network = click.option(
        "--network", type=_FILE, default=BUNDLED_NETWORK, help="Generator.", show_default="bundled"
    )
    return network(_device_and_json(command))


def _open(network: Path, device: str) -> Generator:
    generator = open_network(network, device)
    if not generator.parts:
        raise UserError(f"{network} is a plain EG3D generator: it has no masks, which the scores need")
    return generator


_DATA = click.option(
    "--data", type=_FILE, default=BUNDLED, help="True portraits.", show_default="64 bundled ones"
)
_MASKS = click.option("--masks", type=_FILE, help="Their masks, when not beside them.")
_HELD_OUT = click.option(
    "--held-out", type=Finite(0, 1, min_open=True), default=HELD_OUT, help="Share used, at its end."
)
_TRUNC = click.option("--trunc", type=TRUNCATION, default=1.0, help="Truncation: 1 is the full variety.")
_REFERENCES = click.option("--references/--no-references", default=True, help="Score what it compares with.")


@main.command()
@_common
@_DATA
@_MASKS
@_HELD_OUT
@_TRUNC
@_REFERENCES
@click.option("--features", type=click.Choice(NAMES), default="auto", help="Network of FID, KID and so on.")
@click.option("--seed", type=SEED, default=0, help="Of the latents.")
@user_errors
def quality(
    network: Path,
    json_path: Path | None,
    device: str | None,
    data: Path,
    masks: Path | None,
    held_out: float,
    trunc: float,
    references: bool,
    features: str,
    seed: int,
) -> None:
    """Pictures against true ones (FID, KID, precision, recall, SWD), and masks against the pictures."""
    watch, device = Stopwatch(), choose_device(device)
    generator = _open(network, device)
    halves = evaluation.true_halves(data, masks, generator.config, held_out, click.echo)
    networks = evaluation.judges(features, generator.config.labels, device, click.echo)
    scores = evaluation.evaluate_quality(
        generator,
        halves,
        networks,
        seed=seed,
        truncation=trunc,
        references=references,
        say=click.echo,
    )
    _finish(scores, json_path, watch, device, network=str(network), data=str(data), held_out=held_out)


@main.command()
@_common
@_DATA
@_MASKS
@_HELD_OUT
@_TRUNC
@_REFERENCES
@click.option(
    "--views",
    type=_FILE,
    default=BUNDLED_VIEWS,
    help="True heads from several sides, made by `python -m datasets.portraits.views`.",
    show_default="4 bundled ones",
)
@click.option("--seeds", default="0-15", help="Latents to look at from seven sides.")
@click.option("--inversions", type=click.IntRange(min=0), default=8, help="Held-out portraits to fit.")
@click.option("--fit-steps", type=click.IntRange(min=1), default=100, help="Steps of each fit.")
@user_errors
def geometry(
    network: Path,
    json_path: Path | None,
    device: str | None,
    data: Path,
    masks: Path | None,
    held_out: float,
    trunc: float,
    references: bool,
    views: Path,
    seeds: str,
    inversions: int,
    fit_steps: int,
) -> None:
    """Agreement of views from -40 to 40 degrees, identity, the signed distance, and fitted true surfaces."""
    watch, device = Stopwatch(), choose_device(device)
    generator = _open(network, device)
    config = generator.config
    options = GeometryOptions(tuple(parse_seeds(seeds)), trunc, inversions, Fit(steps=fit_steps), references)
    true_views = (
        read_set(views, config.labels, config.resolution, depth=True)
        if references and evaluation.fits(views, config, "--views", click.echo)
        else None
    )
    portraits = (
        read_set(
            data,
            config.labels,
            config.resolution,
            masks=masks,
            depth=True,
            normals=True,
            share=held_out,
            at_least=inversions,
            say=click.echo,
        )
        if inversions and evaluation.fits(data, config, "--data", click.echo)
        else None
    )
    scores = evaluation.evaluate_geometry(
        generator,
        options,
        views=true_views,
        held_out=portraits,
        embed=evaluation.identifier(config.labels, device, click.echo),
        say=click.echo,
    )
    _finish(scores, json_path, watch, device, network=str(network), data=str(data), views=str(views))


@main.command()
@_common
@_DATA
@_MASKS
@_HELD_OUT
@click.option("--prior", default=str(BUNDLED_PRIOR), help="Diffusion prior.", show_default="bundled")
@click.option("--cases", help="Which of the fixed list, as 0-9 or hat-red,bald-1.", show_default="all")
@click.option("--first-seed", type=SEED, default=FIRST_SEED, help="Another: the list on other people.")
@click.option("--list", "list_only", is_flag=True, help="Print the fixed list and stop.")
@click.option(
    "--outdir", type=OutFolder(), default=Path("out/edits"), help="A folder per case; finished ones stay."
)
@click.option("--rescore", is_flag=True, help="Score finished edits again, without editing again.")
@click.option("--objective", type=click.Choice([each.name for each in OBJECTIVES]), default="cdgt")
@click.option("--steps", type=click.IntRange(min=1), default=200)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Any field of an edit's settings.")
@user_errors
def edits(
    network: Path,
    json_path: Path | None,
    device: str | None,
    data: Path,
    masks: Path | None,
    held_out: float,
    prior: str,
    cases: str | None,
    first_seed: int,
    list_only: bool,
    outdir: Path,
    rescore: bool,
    objective: str,
    steps: int,
    overrides: tuple[str, ...],
) -> None:
    """Run and score the fixed list of edits; what is in --outdir already is not run again."""
    chosen = chosen_cases(cases, first_seed)
    if list_only:
        for number, case in enumerate(chosen):
            click.echo(f"{number:2d}  {case.name:15s} seed {case.seed}  {case.prompt}")
        return
    watch, device = Stopwatch(), choose_device(device)
    settings = config_files.load(EditSettings, {"objective": objective, "steps": steps}, overrides)
    network = find_network(network)
    config = _open(network, device).config
    run = EditRun(network, prior, outdir, settings, device, rescore, first_seed)
    portraits = None
    if evaluation.fits(data, config, "--data", click.echo):
        portraits = _captioned(data, masks, config.labels, config.resolution, held_out)
    found = evaluate_edits(run, chosen, label_set(config.labels), click.echo)
    if portraits is not None:
        found["mean"]["true"] = score_true(portraits, EditJudges.load(device))
    _finish(found, json_path, watch, device, network=str(network), prior=prior, outdir=str(outdir))


@main.command()
@_device_and_json
@_DATA
@_MASKS
@_HELD_OUT
@click.option("--prior", default=str(BUNDLED_PRIOR), help="Diffusion prior.", show_default="bundled")
@click.option("--controlnet", help="ControlNet trained on masks, when the prior's folder has none.")
@click.option("--count", type=click.IntRange(min=2), help="Portraits.", show_default="all held out")
@click.option("--steps", type=click.IntRange(min=1), default=25, help="Of DDIM.")
@click.option("--guidance", type=Finite(min=0), default=4.0)
@click.option("--seed", type=SEED, default=0, help="Of the noise.")
@user_errors
def prior(
    json_path: Path | None,
    device: str | None,
    data: Path,
    masks: Path | None,
    held_out: float,
    prior: str,
    controlnet: str | None,
    count: int | None,
    steps: int,
    guidance: float,
    seed: int,
) -> None:
    """Whether samples of a prior show what held-out captions and masks say."""
    watch, device = Stopwatch(), choose_device(device)
    reader = Reader.load(device=device)
    found = load_prior(prior, controlnet, device=device)
    portraits = _captioned(data, masks, reader.config.labels, found.image_size, held_out).take(slice(count))
    scores = evaluate_prior(found, portraits, reader, Sampling(steps, guidance, seed))
    _finish(scores, json_path, watch, device, prior=prior, data=str(data), held_out=held_out)


def _captioned(data: Path, masks: Path | None, labels: str, resolution: int, held_out: float) -> PortraitSet:
    """The held-out portraits, whose captions say what can be read off them."""
    portraits = read_set(
        data,
        labels,
        resolution,
        masks=masks,
        share=held_out,
        at_least=evaluation.FEWEST,
        say=click.echo,
    )
    if not any(portraits.captions):
        raise UserError(f"{data} has no captions: only portraits with captions can say what is followed")
    return portraits


def _finish(scores: dict, path: Path | None, watch: Stopwatch, device: str, **settings: object) -> None:
    click.echo(table(scores.get("mean", scores)))
    if path is not None:
        write_scores(path, shlex.join(["python", *sys.argv]), scores, watch, device, **settings)
        click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
