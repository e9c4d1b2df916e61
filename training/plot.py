"""Draws learning curves: ``python -m training.plot RUN --out curves.png``.

RUN is the folder of a generator's or a prior's run. One panel per group of curves that share a scale, one
line per curve, phases (or stages) one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from dnnlib.errors import UserError, user_errors
from dnnlib.files import atomic_path
from dnnlib.options import PictureFile
from training import curves

_PRIOR_FILE = "curves.jsonl"
# Panels: title, curves. A panel none of whose curves a run has is left out.
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("reconstruction: L1 and cross-entropy", ("fit/image", "fit/gradients", "fit/mask")),
    ("reconstruction: depth L1", ("fit/depth",)),
    ("adversarial losses of the generator", ("generator/image", "generator/mask")),
    ("sign of D on true pictures", ("discriminator/image_real_sign", "discriminator/mask_real_sign")),
    ("R1: squared gradient norm", ("discriminator/image_r1", "discriminator/mask_r1")),
    ("shape: eikonal residual, minimal surface", ("shape/eikonal", "shape/minimal_surface")),
    ("width of the surface: beta", ("shape/beta",)),
    ("autoencoder", ("l1", "gradient", "hue")),
    ("diffusion: error of the predicted noise", ("mse_image", "mse_normal")),
)
_SMOOTH = 5  # log lines of the running median that is drawn over the raw curve


def read_run(run: Path) -> list[dict]:
    """The lines of a run, each with ``kimg`` over all phases. Raises UserError when there are none."""
    lines = curves.read_curves(run / curves.FILE)
    if lines:
        return [{"kimg": line["images"] / 1000, **line} for line in lines]
    lines = curves.read_curves(run / _PRIOR_FILE)
    if not lines:
        raise UserError(f"{run} holds no learning curves: there is neither {curves.FILE} nor {_PRIOR_FILE}")
    return [{**line, "phase": line["stage"]} for line in lines]


def points(lines: Sequence[dict], name: str) -> tuple[list[float], list[float]]:
    """kimg and values of one curve, where it was logged."""
    known = [(line["kimg"], line[name]) for line in lines if line.get(name) is not None]
    return [x for x, _ in known], [y for _, y in known]


def running_median(values: Sequence[float], width: int = _SMOOTH) -> list[float]:
    """Median of each value and its ``width // 2`` neighbours on either side, fewer at the ends."""
    half = width // 2
    windows = (sorted(values[max(0, i - half) : i + half + 1]) for i in range(len(values)))
    return [window[len(window) // 2] for window in windows]


def draw(run: Path, out: Path) -> list[str]:
    """Writes the picture; returns the titles of its panels."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("curves are drawn with matplotlib: pip install '.[docs]'") from None
    lines = read_run(run)
    panels = [(title, [n for n in names if points(lines, n)[0]]) for title, names in PANELS]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        raise UserError(f"{run} has learning curves, but none of those that are drawn")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        for name in names:
            x, y = points(lines, name)
            (raw,) = axes.plot(x, y, alpha=0.25, linewidth=0.8)
            axes.plot(x, running_median(y), color=raw.get_color(), label=name.split("/")[-1])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("kimg", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=110, format=out.suffix.lstrip(".").lower())
    return [title for title, _ in panels]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=PictureFile((".png", ".svg")), required=True, help="Picture to write.")
@user_errors
def main(run: Path, out: Path) -> None:
    """Draw the learning curves of RUN."""
    for title in draw(run, out):
        click.echo(title)


if __name__ == "__main__":
    main()
