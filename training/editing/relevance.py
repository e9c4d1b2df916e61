"""Where two sentences differ about a picture, as the prior sees it.

    r(x) = mean over t and noise of |e(z_t, y, m) - e(z_t, y', m)|(x), blurred, as a share of its maximum

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
    """(1, 1, h, w) in [0, 1] for the latents (1, C, h, w) of a picture; 1 everywhere if nothing differs.

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
        total += (seen.conditional - seen.unconditional).abs().mean((0, 1))
    blurred = functional.avg_pool2d(total, _BLUR, stride=1, padding=_BLUR // 2, count_include_pad=False)
    most = blurred.amax()
    return blurred / most if most > 0 else torch.ones_like(blurred)


def concerned(relevance_map: Tensor, least: float, size: tuple[int, int] | torch.Size) -> Tensor:
    """(H, W) bool: the pixels of a picture of that size where the map (1, 1, h, w) is ``least`` or more."""
    return functional.interpolate(relevance_map, size=size, mode="bilinear")[0, 0] >= least
