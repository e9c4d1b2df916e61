"""Ten edits, made and measured: ``python -m training.editing.cases --outdir out/cases``.

Each case is a seed, a repainting of that portrait's own mask by simple geometry, and a sentence. The command
writes every edit's folder, a contact sheet, and the mean scores that the documentation quotes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from scipy import ndimage

from datasets.labels import LabelSet, read_mask, write_mask
from dnnlib import config as config_files
from dnnlib.errors import UserError, named, user_errors
from dnnlib.files import claim_folder, make_folder, read_json, sha256, write_json
from dnnlib.options import OutFolder
from torch_utils.device import choose_device
from training.editing.report import REPORT
from training.editing.session import EditOptions, SourceOptions, open_source, run_edit
from training.editing.settings import OF_COMPUTATION, EditSettings
from training.network_source import BUNDLED_PRIOR, find_network, network_option
from training.pictures import sheet, tile, write_png
from training.prior import load_prior
from training.scene import class_map

Repaint = Callable[[np.ndarray, LabelSet], np.ndarray]  # class map (H, W) uint8 -> the same, repainted
_TILE = 128


@dataclass(frozen=True)
class Case:
    """One edit; ``classes`` only where the mask alone does not say what to edit."""

    name: str
    seed: int
    repaint: Repaint
    prompt: str
    source_prompt: str = "a portrait of a person"
    classes: tuple[str, ...] = ()


class Unpaintable(UserError):
    """A portrait's mask with which a case can do nothing: no face to put a hat on, no hair to take away."""


def _head(mask: np.ndarray, labels: LabelSet) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Head without neck (H, W) bool, and top, bottom, left, right of the face in it."""
    face_names = ("skin", "nose", "left eye", "right eye", "left brow", "right brow", "mouth")
    face = np.isin(mask, [labels.index(name) for name in face_names])
    head = face | np.isin(mask, [labels.index(name) for name in ("hair", "hat", "left ear", "right ear")])
    if not face.any():
        raise Unpaintable("this portrait's mask shows no face to repaint")
    rows, columns = np.nonzero(face.any(1))[0], np.nonzero(face.any(0))[0]
    return head, (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)


def _pixels(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.mgrid[: mask.shape[0], : mask.shape[1]]


def hat(mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """A crown over the upper head, and a brim as wide as one and a half faces."""
    head, (top, bottom, left, right) = _head(mask, labels)
    y, x = _pixels(mask)
    middle, width, height = (left + right) / 2, right - left, bottom - top
    line = top + 0.2 * height
    crown_top = max(1, np.nonzero(head.any(1))[0][0] - 0.1 * height)
    crown = (np.abs(x - middle) < 0.58 * width) & (y >= crown_top) & (y < line)
    brim = (np.abs(x - middle) < 0.85 * width) & (y >= line - 0.12 * height) & (y < line)
    painted = np.where(crown | brim, labels.index("hat"), mask)
    above = (y < line) & (mask == labels.index("hair")) & ~(crown | brim)
    return np.where(above, 0, painted).astype(np.uint8)  # no hair stands out beside the crown


def long_hair(mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Hair round the head and over the shoulders, wider and wider, behind face and neck.

    It ends a third of the face's height below the chin, where it is 2.4 faces wide: the median of the
    synthetic set's long hair. A bob is 1.8 wide and ends a sixth below.
    """
    head, (top, bottom, left, right) = _head(mask, labels)
    y, x = _pixels(mask)
    width, height = right - left, bottom - top
    middle = (left + right) / 2
    end = bottom + 0.36 * height
    half = np.interp(y, [top - 0.1 * height, top + 0.3 * height, end], np.array([0.55, 0.8, 1.2]) * width)
    curtain = (np.abs(x - middle) < half) & (y > top - 0.1 * height) & (y < end)
    around = curtain | _grown(head, 0.08 * width)
    free = np.isin(mask, [0, *(labels.index(name) for name in ("hat", "left ear", "right ear"))])
    beside = (mask == labels.index("cloth")) & (np.abs(x - middle) > 0.45 * width)
    return np.where(around & (free | beside), labels.index("hair"), mask).astype(np.uint8)


def big_hair(mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Hair that stands off the upper head on all sides, an afro: as in the synthetic set it is 1.8 faces wide
    and ends above the chin, unlike long curls."""
    _, (top, bottom, left, right) = _head(mask, labels)
    y, x = _pixels(mask)
    width, height = right - left, bottom - top
    radius = np.hypot((x - (left + right) / 2) / (0.88 * width), (y - top - 0.12 * height) / (0.58 * height))
    ball = radius < 1
    free = np.isin(mask, [0, *(labels.index(name) for name in ("hat", "left ear", "right ear"))])
    hair = np.isin(mask, [labels.index("hair"), labels.index("hat")])
    return np.where(ball & free, labels.index("hair"), np.where(hair & ~ball, 0, mask)).astype(np.uint8)


def short_hair(mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Hair only close to the upper half of the face; what it covered is background."""
    _, (top, bottom, left, right) = _head(mask, labels)
    y, _ = _pixels(mask)
    width, height = right - left, bottom - top
    hair = mask == labels.index("hair")
    face = (mask != 0) & ~hair & (mask != labels.index("cloth")) & (mask != labels.index("neck"))
    keep = hair & _grown(face, 0.22 * width) & (y < top + 0.45 * height)
    return np.where(hair & ~keep, 0, mask).astype(np.uint8)


def same(mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """The mask as it is: only the look of the named classes is to change."""
    return mask


def _grown(region: np.ndarray, pixels: float) -> np.ndarray:
    return ndimage.distance_transform_edt(~region) <= pixels


CASES = (
    Case("red-hat", 5, hat, "a person wearing a red hat"),
    Case("blue-hat", 20, hat, "a person wearing a blue hat"),
    Case("black-hat", 6, hat, "a man wearing a black hat"),
    Case("long-blond", 13, long_hair, "a woman with long blond hair"),
    Case("long-red", 2, long_hair, "a woman with long red hair"),
    Case("afro", 1, big_hair, "a person with a black afro"),
    Case("short", 29, short_hair, "a man with short brown hair"),
    Case("red-hair", 6, same, "a person with red hair", classes=("hair",)),
    Case("white-hair", 12, same, "an old person with white hair", classes=("hair",)),
    Case("green-shirt", 8, same, "a person wearing a green shirt", classes=("cloth",)),
)


def run_case(
    case: Case, network: Path, prior: str, outdir: Path, settings: EditSettings, device: str = "cpu"
) -> dict:
    """Repaints, edits, and returns the report's scores.

    Raises :class:`Unpaintable` where there is nothing to repaint. An edit that is stopped (Ctrl-C) leaves no
    report, so that it is made again, and raises KeyboardInterrupt.
    """
    source_options = SourceOptions(network, case.seed, device=device)
    source = open_source(source_options)
    make_folder(outdir)
    own = class_map(source.view)[0].byte().cpu().numpy()
    requested = case.repaint(own, source.labels)
    if not case.classes and (requested == own).all():
        raise Unpaintable("this portrait's mask has nothing to repaint")
    write_mask(outdir / "requested.png", requested, source.labels)
    options = EditOptions(
        mask=outdir / "requested.png",
        prompt=case.prompt,
        outdir=outdir,
        prior=prior,
        source_prompt=case.source_prompt,
        classes=case.classes,
        settings=settings,
        command=f"python -m training.editing.cases, case {case.name}",
    )
    report = run_edit(source_options, options, say=click.echo)
    if report.interrupted:
        (outdir / REPORT).unlink()
        raise KeyboardInterrupt
    return {
        "case": case.name,
        "prompt": case.prompt,
        "mask_iou": report.mask_iou,
        "psnr_outside_region": report.psnr_outside_region,
        "seconds": report.seconds["total"],
    }


def decided_by(network: Path, prior: str, settings: EditSettings) -> dict[str, Any]:
    """What the result of a case depends on, as JSON. A prior is known by the digest of its UNet's weights, or
    by its name on the Hub."""
    weights = sorted(Path(prior).glob("unet/*.safetensors"))
    chosen = config_files.to_dict(settings)
    return {
        "network_sha256": sha256(network),
        "prior": sha256(weights[0]) if weights else prior,
        "settings": {name: value for name, value in chosen.items() if name not in OF_COMPUTATION},
    }


def contact_sheet(folders: list[Path], labels: LabelSet) -> np.ndarray:
    """A row per edit: before, its mask, the requested mask, after, its mask, its normals."""
    rows = []
    for folder in folders:
        row = []
        for name in ("before", "mask_before", "requested", "after", "mask_after", "normals_after"):
            if name == "requested" or name.startswith("mask"):
                row.append(
                    tile(labels.colourise(read_mask(folder / f"{name}.png", labels)), _TILE, nearest=True)
                )
            else:
                row.append(tile(np.asarray(Image.open(folder / f"{name}.png").convert("RGB")), _TILE))
        rows.append(row)
    return sheet(rows)


@click.command(context_settings={"show_default": True})
@click.option("--outdir", type=OutFolder(), default=Path("out/cases"))
@network_option
@click.option("--prior", default=str(BUNDLED_PRIOR), help="Diffusion prior.", show_default="bundled")
@click.option("--only", help="Names of cases, separated by commas.", show_default="all")
@click.option("--steps", type=click.IntRange(min=1), default=200)
@click.option("--device", help="cpu, cuda, cuda:1 ...", show_default="cuda where there is one")
@user_errors
def main(outdir: Path, network: Path, prior: str, only: str | None, steps: int, device: str | None) -> None:
    """Run the cases that are not done yet, and print all scores and their means."""
    chosen = named("--only", only, {case.name: case for case in CASES})
    device, settings = choose_device(device), EditSettings(steps=steps)
    load_prior(prior)  # says what is wrong with it before the folder is its
    claim_folder(outdir, decided_by(find_network(network), prior, settings))
    scores = []
    for case in chosen:
        done = outdir / case.name / "score.json"
        if not done.exists():
            score = run_case(case, network, prior, outdir / case.name, settings, device)
            write_json(done, score)
        scores.append(read_json(done))
        click.echo("  ".join(f"{key} {value}" for key, value in scores[-1].items()))
    means = {
        key: float(np.mean([s[key] for s in scores]))
        for key in ("mask_iou", "psnr_outside_region", "seconds")
    }
    write_json(outdir / "scores.json", {"cases": scores, "mean": means})
    labels = open_source(SourceOptions(network, chosen[0].seed)).labels
    write_png(outdir / "sheet.png", contact_sheet([outdir / case.name for case in chosen], labels))
    click.echo(f"mean of {len(scores)}: " + ", ".join(f"{key} {value:.3f}" for key, value in means.items()))


if __name__ == "__main__":
    main()
