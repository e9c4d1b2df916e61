"""What changes during the adversarial phase: pure functions of the number of images seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import ScheduleConfig

_BLUR_REFERENCE = 512  # side of the picture in whose pixels ``blur_sigma`` is given
_BATCH_REFERENCE = 32  # batch for which ``blur_kimg`` and ``ema_kimg`` are given


@dataclass(frozen=True)
class Moment:
    """The schedules' values at one moment."""

    swap_probability: float  # of conditioning the mapping on another picture's camera
    blur: float  # standard deviation of the discriminators' input blur, as a share of the picture's side
    mask_noise: float  # standard deviation of the noise on the masks that the discriminators see
    raw_resolution: int  # side of the volume rendering


def moment(config: ScheduleConfig, images: int, batch: int) -> Moment:
    """Values after ``images`` images of the adversarial phase, with ``batch`` images a step."""
    kimg = images / 1000
    swap = 1 + (config.swap_final - 1) * _progress(kimg, config.swap_kimg)
    blur = config.blur_sigma * (1 - _progress(kimg, config.blur_kimg * batch / _BATCH_REFERENCE))
    faded = _progress(kimg, config.mask_noise_kimg)
    noise = config.mask_noise + (config.mask_noise_final - config.mask_noise) * faded
    grown = (
        _progress(kimg - config.raw_switch_kimg, config.raw_fade_kimg)
        if kimg > config.raw_switch_kimg
        else 0.0
    )
    raw = config.raw_resolution + (config.raw_resolution_final - config.raw_resolution) * grown
    return Moment(
        swap_probability=swap, blur=blur / _BLUR_REFERENCE, mask_noise=noise, raw_resolution=round(raw)
    )


def warm_up_share(share: float, steps: int) -> float:
    """``share`` of the steps for torch's OneCycleLR, which divides by zero where that is exactly one step."""
    return share * 1.01 if abs(share * steps - 1) < 1e-6 else share


def crossed(before: int, after: int, kimg: float) -> bool:
    """Whether going from ``before`` to ``after`` images completes another ``kimg`` thousand; 0: never."""
    every = max(1, round(kimg * 1000))
    return kimg > 0 and after // every > before // every


def lowered_beta(beta: Tensor, config: ScheduleConfig, batch: int) -> Tensor:
    """The density's beta one step of the generator later: surfaces become sharper, and depth with them, as
    slowly as colours can follow. It depends on beta alone, so that a run goes on from wherever a warm start
    left it."""
    lower = beta * 0.5 ** (batch / (1000 * config.beta_kimg))
    return torch.minimum(beta, lower.clamp_min(config.beta))


def average_decay(ema_kimg: float, rampup: float, images: int, batch: int) -> float:
    """Share of the old generator average that one step keeps: 0.5 ** (batch / half-life).

    The half-life is ``ema_kimg`` thousand images at batch 32, in proportion for other batches, and at most
    the share ``rampup`` of the ``images`` trained so far, so that the start is forgotten soon.
    """
    half_life = min(ema_kimg * 1000 * batch / _BATCH_REFERENCE, images * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


def _progress(kimg: float, length: float) -> float:
    """0 at the start, 1 from ``length`` on."""
    return min(max(kimg / length, 0.0), 1.0) if length > 0 else 1.0
