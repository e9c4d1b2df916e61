"""Score distillation: what a diffusion prior would change in a picture, as a gradient (method section 5).

Notation: z the latents of a picture; z_t = sqrt(a_t) z + sqrt(1 - a_t) noise, a_t the cumulated alpha at step
t; e_y and e_0 the prior's noise prediction with and without the prompt; d = e_y - e_0; e = e_0 + s d with
guidance s; w_t = 1 - a_t; m the mask condition. Primes mark the source branch: the frozen picture with its
own prompt and mask, noised by the same t and noise. The gradients with respect to z are

    cdgt, dds   g = e(z_t, y, m) - e(z'_t, y', m')     pairwise: what the prior thinks of the source cancels
    sds         g = w_t (e - noise)
    csd         g = w_t s d                            SDS without its first term w_t (e_0 - noise)

'cdgt', the default, is the pairwise gradient on the picture and, as a second branch, on its normal map, with
the condition m re-rendered from the edited model as it changes; 'dds' is the picture's branch alone. Which
pictures are shown and how the branches are blended is the caller's business
(:mod:`training.editing.optimise`): the functions here see latents, and return gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dnnlib.errors import UserError, did_you_mean


class NoisePrediction(Protocol):
    """e_y and e_0, each (N, C, h, w)."""

    conditional: Tensor
    unconditional: Tensor


class NoisePredictor(Protocol):
    """The part of :class:`training.prior.Prior` that distillation needs."""

    alphas_cumprod: Tensor  # (T,)

    def predict_noise(
        self,
        latents: Tensor,
        t: Tensor,
        text: Tensor,
        condition: Tensor | None,
        *,
        guidance_scale: float,
        negative: Tensor,
    ) -> NoisePrediction: ...


@dataclass(frozen=True)
class Branch:
    """Pictures as the prior is shown them."""

    latents: Tensor  # (N, C, h, w) z; detached
    text: Tensor  # (N, L, D) embedded prompts, of e_y
    negative: Tensor  # (N, L, D) what guidance compares them with, of e_0
    condition: Tensor | None  # (N, 3, H, W) palette colours of the masks in [0, 1]; None: without ControlNet


@dataclass(frozen=True)
class Noising:
    """The noise that both branches share."""

    t: Tensor  # (N,) diffusion steps in [0, T)
    noise: Tensor  # (N, C, h, w)


Gradient = Callable[[NoisePredictor, Branch, "Branch | None", Noising, float], Tensor]


@dataclass(frozen=True)
class Objective:
    """A way to distil: the gradient, and which branches it is to be fed."""

    name: str
    gradient: Gradient  # (prior, edited, source, noising, guidance) -> (N, C, h, w)
    paired: bool  # needs the source branch
    geometry: bool  # is applied to normal maps too


def add_noise(latents: Tensor, noising: Noising, alphas_cumprod: Tensor) -> Tensor:
    """z_t = sqrt(a_t) z + sqrt(1 - a_t) noise, (N, C, h, w)."""
    alpha = _at(alphas_cumprod, noising.t, latents)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noising.noise


@torch.no_grad()
def delta_denoising(
    prior: NoisePredictor, edited: Branch, source: Branch | None, noising: Noising, guidance: float
) -> Tensor:
    """g = e(z_t, y, m) - e(z'_t, y', m'). Exactly zero when both branches are equal."""
    if source is None:
        raise ValueError("a paired objective needs the source branch")
    both = Branch(
        torch.cat([edited.latents, source.latents]),
        torch.cat([edited.text, source.text]),
        torch.cat([edited.negative, source.negative]),
        None if edited.condition is None else torch.cat([edited.condition, source.condition]),
    )
    twice = Noising(noising.t.repeat(2), noising.noise.repeat(2, 1, 1, 1))
    predicted, unconditional = _predict(prior, both, twice, guidance)
    of_edited, of_source = (unconditional + guidance * (predicted - unconditional)).chunk(2)
    return of_edited - of_source


@torch.no_grad()
def score_distillation(
    prior: NoisePredictor, edited: Branch, source: Branch | None, noising: Noising, guidance: float
) -> Tensor:
    """g = w_t (e - noise); the source is not used."""
    predicted, unconditional = _predict(prior, edited, noising, guidance)
    weight = 1 - _at(prior.alphas_cumprod, noising.t, edited.latents)
    return weight * (unconditional + guidance * (predicted - unconditional) - noising.noise)


@torch.no_grad()
def classifier_score(
    prior: NoisePredictor, edited: Branch, source: Branch | None, noising: Noising, guidance: float
) -> Tensor:
    """g = w_t s d; the source is not used and the guidance only scales."""
    predicted, unconditional = _predict(prior, edited, noising, guidance)
    weight = 1 - _at(prior.alphas_cumprod, noising.t, edited.latents)
    return weight * guidance * (predicted - unconditional)


CDGT = Objective("cdgt", delta_denoising, paired=True, geometry=True)
DDS = Objective("dds", delta_denoising, paired=True, geometry=False)
SDS = Objective("sds", score_distillation, paired=False, geometry=True)
CSD = Objective("csd", classifier_score, paired=False, geometry=True)
OBJECTIVES = (CDGT, DDS, SDS, CSD)


def objective(name: str) -> Objective:
    """The objective of that name; UserError that names the nearest one otherwise."""
    for candidate in OBJECTIVES:
        if candidate.name == name:
            return candidate
    raise UserError(f"unknown objective '{name}': {did_you_mean(name, [known.name for known in OBJECTIVES])}")


def surrogate(latents: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient with respect to latents (N, C, h, w) is gradient / N: sum(stop(g) z) / N.

    Its value means nothing; report the size of the gradient instead.
    """
    return (gradient.detach() * latents).sum() / len(latents)


def clean_latent_weight(t: int, alphas_cumprod: Tensor) -> float:
    """min(1, sqrt((1 - a_t) / a_t)), for paired gradients.

    A difference dz of clean latents is a difference sqrt(a / (1 - a)) dz of noise predictions, 7 dz and more
    at the end of an annealed edit: unweighted, its last steps would outweigh all that is kept. Above a = 1/2
    this measures the gradient in clean latents; below, where predictions are coarse, it stays as it is.
    """
    alpha = float(alphas_cumprod[t])
    return min(1.0, ((1 - alpha) / alpha) ** 0.5)


def annealed_timestep(progress: float, steps: int, first: float = 0.8, last: float = 0.02) -> int:
    """Diffusion step at ``progress`` in [0, 1] of an edit: linear from ``first`` to ``last``, as shares of
    ``steps``."""
    share = first + (last - first) * min(max(progress, 0.0), 1.0)
    return min(max(round(share * steps), 0), steps - 1)


def _predict(
    prior: NoisePredictor, shown: Branch, noising: Noising, guidance: float
) -> tuple[Tensor, Tensor]:
    """e_y and e_0."""
    prediction = prior.predict_noise(
        add_noise(shown.latents, noising, prior.alphas_cumprod),
        noising.t,
        shown.text,
        shown.condition,
        guidance_scale=guidance,
        negative=shown.negative,
    )
    return prediction.conditional, prediction.unconditional


def _at(alphas_cumprod: Tensor, t: Tensor, like: Tensor) -> Tensor:
    return alphas_cumprod.to(like)[t].view(-1, 1, 1, 1)
