"""Where two sentences differ about a picture, as the prior sees it.

    r(x) = mean over t and noise of |e(z_t, y, m) - e(z_t, y', m)|(x), blurred

An edit that repaints nothing says *what* shall change by its classes, and *where* by its sentence alone: of
"a person with a beard" the chin is concerned, not all of the skin. The difference of the noise predictions
shows it before anything is changed (DiffEdit, Couairon et al. 2023, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.distillation import NoisePredictor, Noising, add_noise

_LEVELS = (0.2, 0.4, 0.6, 0.8)  # noise levels, as shares of the diffusion steps
_DRAWS = 2  # of the noise at each of them
_BLUR = 3  # latent pixels: a beard has no holes


@torch.no_grad()
def relevance(
    prior: NoisePredictor,
    latents: Tensor,
    condition: Tensor | None,
    edited: Tensor,
    source: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """r of the latents (1, C, h, w) of a picture: (1, 1, h, w), not negative.

    condition: (1, 3, S, S) of its mask, or None. edited, source: the embedded sentences (1, L, D).
    generator: source of the noise, on the CPU.
    """
    steps = len(prior.alphas_cumprod)
    total = latents.new_zeros(1, 1, *latents.shape[-2:])
    for level in _LEVELS:
        t = torch.full((_DRAWS,), min(steps - 1, round(level * steps)), device=latents.device)
        noise = torch.randn((_DRAWS, *latents.shape[1:]), generator=generator).to(latents)
        seen = prior.predict_noise(
            add_noise(latents, Noising(t, noise), prior.alphas_cumprod),
            t,
            edited.expand(_DRAWS, -1, -1),
            None if condition is None else condition.expand(_DRAWS, -1, -1, -1),
            guidance_scale=1.0,
            negative=source.expand(_DRAWS, -1, -1),
        )
        total += (seen.conditional - seen.unconditional).abs().mean(1).sum(0)
    mean = total / (len(_LEVELS) * _DRAWS)
    return functional.avg_pool2d(mean, _BLUR, stride=1, padding=_BLUR // 2, count_include_pad=False)


def concerned(found: Tensor, share: float, within: Tensor) -> Tensor:
    """(H, W) bool: where :func:`relevance` is at least a share of its most ``within`` (H, W) bool pixels.

    What else the sentences differ about, outside of these, does not count: something in them is meant.
    """
    pixels = functional.interpolate(found, size=within.shape, mode="bilinear")[0, 0]
    return pixels >= share * pixels.where(within, 0.0).amax()
