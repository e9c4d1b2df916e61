"""What each part of an edit brings: ``python -m training.metrics.edit_variants``.

The same cases are edited with each variant of the settings and scored as ``evaluate.py edits`` does. The
table has the mean of each score; beside it, with its standard error, the mean of the differences from the
first variant case by case, so that what differs between cases cancels. Folders of finished cases are kept, so
the command goes on where it was stopped.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from datasets.labels import LabelSet, label_set, read_mask
from dnnlib import config as config_files
from dnnlib.errors import UserError, named, user_errors
from dnnlib.files import atomic_path
from dnnlib.options import OutFolder
from torch_utils.device import choose_device
from training.editing.settings import EditSettings
from training.metrics.edit_runs import EditRun, chosen_cases, evaluate_edits
from training.metrics.edits import means
from training.metrics.tables import Stopwatch, write_scores
from training.network_source import BUNDLED_PRIOR, find_network, network_option, open_network
from training.pictures import sheet, tile, write_png

_TILE = 96
SCORES = (  # of a case, in the order of the table
    "success",
    "claims",
    "clip_directional",
    "mask_iou",
    "mask_read",
    "psnr_outside",
    "identity",
    "identity_shared",
    "depth_warp",
    "mask_agreement",
    "seconds",
)


_DIGITS = {"depth_warp": 4}  # world units: thousandths of a head; 3 digits for all others


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the default."""

    name: str
    overrides: tuple[str, ...] = ()


# SDS and CSD have gradients of another size. With these weights the picture's has the same root mean square
# over an edit as the pairwise one (0.104, 0.068 and 0.041 in the reports of one edit with each), so that what
# is kept weighs the same beside it. Without the normal map's share the picture's keeps its own, 0.7.
VARIANTS = (
    Variant("cdgt"),
    Variant("no-geometry", ("objective=dds", "weights.distillation=0.014")),
    Variant("sds", ("objective=sds", "weights.distillation=0.031")),
    Variant("csd", ("objective=csd", "weights.distillation=0.051")),
    Variant("fixed-condition", ("update_condition=false",)),
    Variant("frozen-samples", ("proposals=frozen",)),
    Variant("union-samples", ("proposals=union",)),
)


def chosen_variants(text: str | None) -> list[Variant]:
    """Variants by name, separated by commas; None: all."""
    return named("--variants", text, {each.name: each for each in VARIANTS})


def differences(first: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], score: str) -> np.ndarray:
    """``other - first``, case by case; claims are the share of a sentence that is read off the picture."""
    return np.array([_value(b, score) - _value(a, score) for a, b in zip(first, other, strict=True)])


def _value(scores: dict[str, Any], name: str) -> float:
    return means([scores])[name]


def standard_error(values: np.ndarray) -> float:
    """Of the mean of the values; nan for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def markdown(results: dict[str, list[dict[str, Any]]]) -> str:
    """A row per variant: means, and differences from the first variant with their standard errors."""
    (first_name, first), *_ = results.items()
    lines = [f"| variant | {' | '.join(SCORES)} |", "| --- |" + " --- |" * len(SCORES)]
    for name, scores in results.items():
        cells = []
        for score in SCORES:
            digits = _DIGITS.get(score, 3)
            cell = f"{np.mean([_value(each, score) for each in scores]):.{digits}f}"
            if name != first_name:
                change = differences(first, scores, score)
                cell += f" ({change.mean():+.{digits}f} ± {standard_error(change):.{digits}f})"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(folders: Sequence[Path], cases: Sequence[str], labels: LabelSet) -> np.ndarray:
    """A row per case: before, the requested mask, and what each variant made of it."""
    rows = []
    for case in cases:
        first = folders[0] / case
        row = [_tile(first / "before.png")]
        mask = labels.colourise(read_mask(first / "requested.png", labels))
        row.append(tile(mask, _TILE, nearest=True))
        rows.append(row + [_tile(folder / case / "after.png") for folder in folders])
    return sheet(rows)


def _tile(path: Path) -> np.ndarray:
    return tile(np.asarray(Image.open(path).convert("RGB")), _TILE)


@click.command(context_settings={"show_default": True})
@click.option("--outdir", type=OutFolder(), default=Path("out/edit-variants"))
@network_option
@click.option("--prior", default=str(BUNDLED_PRIOR), help="Diffusion prior.", show_default="bundled")
@click.option("--cases", help="Of the fixed list, as `evaluate.py edits` takes them.", show_default="all")
@click.option("--variants", help=f"Of {', '.join(v.name for v in VARIANTS)}.", show_default="all")
@click.option("--steps", type=click.IntRange(min=1), default=200)
@click.option("--device", help="cpu, cuda, cuda:1 ...", show_default="cuda where there is one")
@user_errors
def main(
    outdir: Path,
    network: Path,
    prior: str,
    cases: str | None,
    variants: str | None,
    steps: int,
    device: str | None,
) -> None:
    """Edit the cases with each variant, and write table.md, scores.json and sheet.png into --outdir."""
    device = choose_device(device)
    watch, chosen, kinds = Stopwatch(), chosen_cases(cases), chosen_variants(variants)
    network = find_network(network)
    labels = label_set(open_network(network).config.labels)
    found: dict[str, dict[str, Any]] = {}
    for variant in kinds:
        click.echo(f"{variant.name}: {' '.join(variant.overrides) or 'the default settings'}")
        settings = config_files.load(EditSettings, {"steps": steps}, variant.overrides)
        run = EditRun(network, prior, outdir / variant.name, settings, device)
        found[variant.name] = evaluate_edits(run, chosen, labels, click.echo)["cases"]
    whole = [
        case.name
        for case in chosen
        if all("edit" in found[variant.name].get(case.name, {}) for variant in kinds)
    ]
    if not whole:
        raise UserError("no case could be edited with all variants: see the scores.json of each")
    results = {name: [cases_[case]["edit"] for case in whole] for name, cases_ in found.items()}
    table = markdown(results)
    click.echo(f"{len(whole)} cases\n{table}")
    with atomic_path(outdir / "table.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    command = shlex.join(["python", "-m", "training.metrics.edit_variants", *sys.argv[1:]])
    write_scores(outdir / "scores.json", command, results, watch, device, network=str(network), prior=prior)
    write_png(outdir / "sheet.png", picture([outdir / v.name for v in kinds], whole, labels))
    click.echo(f"written to {outdir}: table.md, scores.json, sheet.png")


if __name__ == "__main__":
    main()
