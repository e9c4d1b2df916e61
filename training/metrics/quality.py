"""Are the pictures like the true ones, and are the masks true of the pictures?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.labels import LabelSet
from dnnlib.errors import UserError
from training.judges.reader import Reader
from training.metrics.distributions import (
    frechet_distance,
    kernel_distance,
    patch_distance,
    precision_recall,
)
from training.metrics.features import FeatureNetwork
from training.metrics.segmentation import FREQUENT, mean_iou, presence
from training.metrics.sources import Portraits


@dataclass(frozen=True)
class Quality:
    """Scores of a set of portraits against true ones."""

    pictures: int  # measured, against as many true ones
    features: str  # network of the four scores below
    fid: float  # 0 is best
    kid: float  # about 0 is best
    precision: float  # share of the pictures that look true
    recall: float  # share of the true pictures that could have come from here
    swd: float  # sliced Wasserstein distance of patches, times 1000; 0 is best, no network
    mask_iou: float | None  # of the read mask and the own one, mean over the frequent classes
    mask_iou_by_class: dict[str, float] | None  # those that either has


def score_quality(
    portraits: Portraits, true: Portraits, network: FeatureNetwork, reader: Reader | None, labels: LabelSet
) -> Quality:
    """``reader`` None, or one of other labels: masks are not scored. Raises UserError where a picture is not
    made of numbers: distances would then be too.

    Which classes count for the mean mask IoU is decided by the true masks: those that 2 % of them have.
    """
    if not portraits.images.isfinite().all():
        raise UserError("the pictures to be scored are not numbers (nan): the generator's weights are broken")
    real, fake = network(true.images), network(portraits.images)
    precision, recall = precision_recall(real, fake)
    mean, by_class = mask_scores(portraits, true.masks, reader, labels)
    return Quality(
        pictures=len(portraits),
        features=network.name,
        fid=frechet_distance(real, fake),
        kid=kernel_distance(real, fake),
        precision=precision,
        recall=recall,
        swd=patch_distance(true.images, portraits.images),
        mask_iou=mean,
        mask_iou_by_class=by_class,
    )


@torch.no_grad()
def mask_scores(
    portraits: Portraits, true_masks: Tensor, reader: Reader | None, labels: LabelSet
) -> tuple[float | None, dict[str, float] | None]:
    """IoU of the masks that the reader finds in the pictures with the masks that came with them."""
    if reader is None or reader.labels != labels:
        return None, None
    parts = portraits.images.split(64)
    found = torch.cat([reader.masks(part.to(reader.device)).to(part.device) for part in parts])
    counted = presence(true_masks, labels.count) >= FREQUENT
    mean, each = mean_iou(portraits.masks, found, labels.count, counted)
    return mean, {name: x for name, x in zip(labels.names, each.tolist(), strict=True) if x == x}
