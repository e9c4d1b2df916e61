"""Several views of each head: `python -m datasets.portraits.views --count 16 --outdir runs/views`.

What a set of single pictures cannot say: how depth, mask and looks of *one* head agree between views. The
folder is a portrait set like any other; its pictures are HEAD/view0.png, HEAD/view1.png ... in the order of
the yaws.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click
from tqdm import tqdm

from dnnlib.errors import UserError, user_errors
from dnnlib.files import claim_folder, read_json, write_json

from .head import HeadModel
from .render import camera_label, render
from .run import save
from .sampling import sample

FIRST = 1_000_000  # index of the first head: far from those that sets of single pictures have
_model: HeadModel | None = None  # of a worker process, which draws many heads


def head_name(index: int) -> str:
    """Folder of a head's views."""
    return f"head{index:08d}"


def draw_head(seed: int, index: int, yaws: tuple[float, ...], size: int, samples: int, outdir: Path) -> None:
    """Render head `index` from all yaws (radians) at pitch 0."""
    global _model
    _model = _model or HeadModel()
    attributes = sample(seed, index)
    for number, yaw in enumerate(yaws):
        turned = dataclasses.replace(attributes, yaw=yaw, pitch=0.0)
        picture = render(_model, turned, size, samples)
        label = [round(float(v), 6) for v in camera_label(turned)]
        save(outdir, f"{head_name(index)}/view{number}", picture, {**turned.to_json(), "camera": label})


def write_index(outdir: Path, heads: list[str], views: int) -> None:
    """dataset.json of the heads all of whose views are there."""
    labels, captions = [], {}
    for head in heads:
        for number in range(views):
            record = read_json(outdir / "attributes" / head / f"view{number}.json")
            labels.append([f"{head}/view{number}.png", record["camera"]])
            captions[f"{head}/view{number}.png"] = record["caption"]
    write_json(outdir / "dataset.json", {"labels": labels, "captions": captions}, indent=None)


def render_heads(
    outdir: Path, indices: list[int], yaws: tuple[float, ...], *, seed: int, size: int, samples: int
) -> int:
    """Render what is missing, one head at a time in a process that may die; returns how many are complete."""

    def complete(index: int) -> bool:
        return (outdir / "attributes" / head_name(index) / f"view{len(yaws) - 1}.json").exists()

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    for index in tqdm([i for i in indices if not complete(i)], unit="head", mininterval=2.0):
        try:
            pool.submit(draw_head, seed, index, yaws, size, samples, outdir).result()
        except BrokenProcessPool:  # a strand that mitsuba cannot draw: this head is left out
            pool = ProcessPoolExecutor(1, mp_context=context)
    pool.shutdown()
    done = [head_name(index) for index in indices if complete(index)]
    write_index(outdir, done, len(yaws))
    return len(done)


def _angles(text: str) -> tuple[float, ...]:
    """'-40,0,40' in degrees to radians."""
    try:
        angles = tuple(math.radians(float(word)) for word in text.split(","))
    except ValueError:
        raise UserError(f"--yaws '{text}' are no degrees with commas between them") from None
    if any(abs(angle) > math.pi / 2 for angle in angles):
        raise UserError(f"--yaws '{text}': heads are drawn from -90 to 90 degrees")
    return angles


@click.command(context_settings={"show_default": True})
@click.option("--count", type=click.IntRange(min=1), default=16, help="Number of heads.")
@click.option("--yaws", default="-40,-27,-13,0,13,27,40", help="Views of each, in degrees.")
@click.option("--size", type=click.IntRange(32, 1024), default=64, help="Pixels per side.")
@click.option("--samples", type=click.IntRange(1, 4096), default=24, help="Light paths per pixel.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Another seed, other people.")
@click.option("--start", type=click.IntRange(min=0), default=FIRST, help="Index of the first head.")
@click.option("--outdir", type=click.Path(file_okay=False, path_type=Path), required=True)
@user_errors
def main(count: int, yaws: str, size: int, samples: int, seed: int, start: int, outdir: Path) -> None:
    """Render COUNT heads, each from several sides. A run that was stopped goes on where it was."""
    indices, angles = list(range(start, start + count)), _angles(yaws)
    claim_folder(outdir, {"yaws": angles, "size": size, "samples": samples, "seed": seed})
    done = render_heads(outdir, indices, angles, seed=seed, size=size, samples=samples)
    click.echo(f"{done} heads in {outdir}")


if __name__ == "__main__":
    main()
