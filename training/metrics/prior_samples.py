"""Does a diffusion prior follow captions and masks? Its samples, read like any other portrait.

Held-out captions and masks are sampled; the bundled reader says which attributes and which mask the samples
show. To compare: the true pictures of those captions, which is as good as can be read, and the samples with
the captions and masks of the next picture, which is what ignoring them would get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from datasets.labels import LabelSet, label_set
from training.judges.attributes import claims, satisfied
from training.judges.reader import Reader
from training.metrics.portrait_set import PortraitSet, to_float
from training.metrics.segmentation import mean_iou
from training.prior import Prior

_BATCH = 16


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn."""

    steps: int = 25  # of DDIM
    guidance: float = 4.0
    seed: int = 0


@torch.no_grad()
def sample_portraits(prior: Prior, captions: Sequence[str], masks: Tensor, labels: LabelSet,
                     sampling: Sampling) -> Tensor:  # fmt: skip
    """Pictures (N, 3, H, H) in [-1, 1] of N captions and class maps (N, H, H)."""
    found = []
    starts = range(0, len(captions), _BATCH)
    for number, start in enumerate(tqdm(starts, desc="sample", unit="batch")):
        some = slice(start, start + _BATCH)
        pictures = prior.sample(
            list(captions[some]),
            prior.condition(masks[some].to(prior.device), labels),
            steps=sampling.steps,
            guidance=sampling.guidance,
            seed=sampling.seed + number,
        )
        found.append(pictures.clamp(-1, 1).cpu())
    return torch.cat(found)


@torch.no_grad()
def followed(reader: Reader, pictures: Tensor, captions: Sequence[str], masks: Tensor) -> dict[str, Any]:
    """Shares of the captions' claims that are read off the pictures, all and by attribute; the masks' IoU.

    pictures (N, 3, H, H) in [-1, 1], masks (N, h, h) class maps.
    """
    parts = pictures.to(reader.device).split(64)
    read = [words for part in parts for words in reader(part).words()]
    seen = torch.cat([reader.masks(part) for part in parts]).cpu()
    wanted = functional.interpolate(masks[:, None].float(), seen.shape[-2:], mode="nearest-exact")
    told = [satisfied(claims(caption), words) for caption, words in zip(captions, read, strict=True)]
    by_attribute: dict[str, list[bool]] = {}
    for each in told:
        for name, value in each.items():
            by_attribute.setdefault(name, []).append(value)
    every = [value for values in by_attribute.values() for value in values]
    count = label_set(reader.config.labels).count
    return {
        "pictures": len(pictures),
        "claims": sum(every) / max(1, len(every)),
        "claims_by_attribute": {
            name: sum(values) / len(values) for name, values in sorted(by_attribute.items())
        },
        "mask_iou": mean_iou(wanted[:, 0].long(), seen, count)[0],
    }


def evaluate_prior(
    prior: Prior, portraits: PortraitSet, reader: Reader, sampling: Sampling
) -> dict[str, dict[str, Any]]:
    """Scores by source: 'prior'; 'true', the pictures themselves; 'exchanged', another picture's samples."""
    labels = label_set(reader.config.labels)
    captions, masks = portraits.captions, portraits.masks.long()
    samples = sample_portraits(prior, captions, masks, labels, sampling)
    return {
        "prior": followed(reader, samples, captions, masks),
        "true": followed(reader, to_float(portraits.images), captions, masks),
        "exchanged": followed(reader, samples.roll(1, 0), captions, masks),
    }
