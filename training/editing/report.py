"""What an edit achieved, in numbers."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from torch import Tensor

from datasets.labels import LabelSet
from dnnlib.files import write_json
from training.editing.optimise import StepLosses
from training.editing.region import EditRequest, RegionSettings, dilate, footprint_dilation

_REPORTED = ("torch", "torchvision", "diffusers", "transformers", "numpy")
REPORT = "report.json"  # of an edit
INVERSION = "inversion.json"  # the same of an inversion
# a folder with one of them holds an edit or an inversion, of which these are what took minutes
RESULTS = ("generator.safetensors", "latent.npz", REPORT, INVERSION)
_LARGEST_PSNR = 99.0  # of equal pictures, whose PSNR is infinite: JSON has no infinity


@dataclass(frozen=True)
class Report:
    """``report.json``."""

    command: str  # as typed
    prompt: str
    source_prompt: str
    objective: str
    classes: list[str]  # edited classes
    steps: int  # that were done
    interrupted: bool
    seconds: dict[str, float]  # by stage
    peak_memory_mb: float  # since the edit began, of the process with all it had loaded, or of the GPU
    mask_iou: float  # mean over the classes below
    mask_iou_by_class: dict[str, float]  # rendered against requested mask at M's camera
    psnr_outside_region: float  # dB between the pictures before and after, outside the dilated footprint
    outside_share: float  # share of the picture that this is
    region_share: float  # share of the box that may have changed
    versions: dict[str, str]
    settings: dict  # all of them, to run the edit again
    losses: list[dict]  # one entry per step

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))


def class_iou(rendered: Tensor, requested: Tensor, index: int) -> float | None:
    """Intersection over union of one class of two class maps (H, W); None where neither has it."""
    a, b = rendered == index, requested == index
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else None


def mask_ious(rendered: Tensor, request: EditRequest, labels: LabelSet) -> dict[str, float]:
    """IoU of each edited class at M's camera; a class that M removes counts 1 when it is gone, 0 when not.

    A removal says little by itself, so when M holds no edited class at all, the classes that it puts in their
    place are added.
    """
    classes = list(request.classes)
    if not any((request.requested == c).any() for c in classes):
        classes += [int(c) for c in request.requested[request.changed].unique() if int(c) not in classes]
    found = {c: class_iou(rendered, request.requested, c) for c in classes}
    return {labels.names[c]: 1.0 if iou is None else iou for c, iou in found.items()}


def outside_region(request: EditRequest, settings: RegionSettings) -> Tensor:
    """(H, W) bool: pixels that an edit should have left alone.

    Outside the footprint (repainted, or of an edited class before or in M), dilated twice as far as the
    edit's own, so that the super-resolution's reach across the border does not count. The mask after the edit
    is not consulted: an edited class that spilled over the rest of the picture is damage, and counts as such.
    """
    return ~dilate(request.footprint, 2 * footprint_dilation(settings, request.footprint.shape[-1]))


def psnr(before: Tensor, after: Tensor, where: Tensor) -> float:
    """dB over the pixels of ``where`` (H, W) between pictures (3, H, W) in [-1, 1], clamped as files are."""
    if not where.any():
        return _LARGEST_PSNR
    difference = (before.clamp(-1, 1) - after.clamp(-1, 1))[:, where] / 2
    error = difference.square().mean().item()
    if math.isnan(error):
        return error
    return _LARGEST_PSNR if error == 0 else min(_LARGEST_PSNR, -10 * math.log10(error))


def versions() -> dict[str, str]:
    """Of Python and of what the numbers depend on."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in _REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def losses_as_json(losses: list[StepLosses]) -> list[dict]:
    """Rounded to five significant digits: they are read by people and plotted."""
    return [
        {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in asdict(e).items()} for e in losses
    ]
