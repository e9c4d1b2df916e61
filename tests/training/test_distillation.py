"""The objectives against their equations, and that following them leads where the prior points."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dnnlib.errors import UserError
from training import distillation
from training.distillation import CDGT, CSD, DDS, SDS, Branch, Noising


@dataclass(frozen=True)
class Prediction:
    conditional: Tensor
    unconditional: Tensor


class PullingPrior:
    """e_y is the noise that is left when the clean latents are the text's number, e_0 when they are zero."""

    alphas_cumprod = torch.linspace(0.999, 0.01, 50)

    def predict_noise(self, latents, t, text, condition, *, guidance_scale, negative):
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)

        def noise_of(value: Tensor) -> Tensor:
            return (latents - alpha.sqrt() * value.view(-1, 1, 1, 1)) / (1 - alpha).sqrt()

        return Prediction(noise_of(text), noise_of(negative))


def branch(latents: Tensor, target: float) -> Branch:
    count = len(latents)
    return Branch(latents, torch.full((count, 1, 1), target), torch.zeros(count, 1, 1), None)


@pytest.fixture
def noising() -> Noising:
    return Noising(torch.tensor([30, 10]), torch.randn(2, 3, 4, 4))


def test_noise_is_added_with_unit_variance_weights(noising: Noising) -> None:
    latents = torch.randn(2, 3, 4, 4)
    alpha = PullingPrior.alphas_cumprod
    noisy = distillation.add_noise(latents, noising, alpha)
    by_hand = alpha[10] ** 0.5 * latents[1] + (1 - alpha[10]) ** 0.5 * noising.noise[1]
    torch.testing.assert_close(noisy[1], by_hand)


def test_sds_equation(noising: Noising) -> None:
    # with z_t = sqrt(a) z + sqrt(1-a) n, the fake prior's e - n is sqrt(a) (z - s y) / sqrt(1-a): by hand
    latents = torch.randn(2, 3, 4, 4)
    found = SDS.gradient(PullingPrior(), branch(latents, 0.5), None, noising, 3.0)
    alpha = PullingPrior.alphas_cumprod[noising.t].view(-1, 1, 1, 1)
    by_hand = (1 - alpha) * alpha.sqrt() / (1 - alpha).sqrt() * (latents - 3.0 * 0.5)
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-4)  # float32 cancels the noise


def test_csd_equation_has_no_noise_in_it(noising: Noising) -> None:
    latents = torch.randn(2, 3, 4, 4)
    found = CSD.gradient(PullingPrior(), branch(latents, 0.5), None, noising, 3.0)
    alpha = PullingPrior.alphas_cumprod[noising.t].view(-1, 1, 1, 1)
    by_hand = (1 - alpha) * -3.0 * alpha.sqrt() * 0.5 / (1 - alpha).sqrt()
    torch.testing.assert_close(found, by_hand.expand_as(found), atol=1e-5, rtol=1e-4)


def test_paired_equation(noising: Noising) -> None:
    latents, source = torch.randn(2, 2, 3, 4, 4)
    found = DDS.gradient(PullingPrior(), branch(latents, 0.5), branch(source, -0.25), noising, 3.0)
    alpha = PullingPrior.alphas_cumprod[noising.t].view(-1, 1, 1, 1)
    by_hand = alpha.sqrt() / (1 - alpha).sqrt() * (latents - source - 3.0 * (0.5 + 0.25))
    torch.testing.assert_close(found, by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objective", [CDGT, DDS], ids=lambda o: o.name)
def test_nothing_changes_when_both_branches_are_equal(objective, noising: Noising) -> None:
    latents = torch.randn(2, 3, 4, 4)
    found = objective.gradient(PullingPrior(), branch(latents, 0.5), branch(latents, 0.5), noising, 7.5)
    assert torch.equal(found, torch.zeros_like(found))


def test_a_paired_objective_asks_for_its_source(noising: Noising) -> None:
    with pytest.raises(ValueError, match="source"):
        CDGT.gradient(PullingPrior(), branch(torch.randn(2, 3, 4, 4), 0.5), None, noising, 7.5)


@pytest.mark.parametrize("objective", distillation.OBJECTIVES, ids=lambda o: o.name)
def test_descending_brings_the_picture_towards_the_prompt(objective) -> None:
    prior, target = PullingPrior(), 0.6
    source = 0.1 * torch.randn(1, 3, 4, 4)
    latents = source.clone().requires_grad_()
    optimiser = torch.optim.SGD([latents], lr=0.1)
    for step in range(60):
        t = torch.tensor([distillation.annealed_timestep(step / 59, 50)])
        noising = Noising(t, torch.randn(1, 3, 4, 4))
        gradient = objective.gradient(
            prior, branch(latents.detach(), target), branch(source, 0.0), noising, 1.0
        )
        optimiser.zero_grad()
        distillation.surrogate(latents, gradient).backward()
        optimiser.step()
    moved = latents.detach().mean() - source.mean()
    if objective is CSD:  # it has no pull back: it moves in the prompt's direction for ever
        assert moved > 0.3
    else:
        assert latents.detach().mean().item() == pytest.approx(target, abs=0.1)


def test_the_surrogate_has_the_gradient_per_sample() -> None:
    latents = torch.randn(2, 3, 4, 4, requires_grad=True)
    gradient = torch.randn(2, 3, 4, 4, requires_grad=True)
    distillation.surrogate(latents, gradient).backward()
    torch.testing.assert_close(latents.grad, gradient.detach() / 2)
    assert gradient.grad is None


def test_the_timestep_falls_linearly_and_stays_in_range() -> None:
    assert distillation.annealed_timestep(0.0, 1000) == 800
    assert distillation.annealed_timestep(0.5, 1000) == 410
    assert distillation.annealed_timestep(1.0, 1000) == 20
    assert distillation.annealed_timestep(0.0, 10, first=1.0) == 9


def test_paired_gradients_are_measured_in_clean_latents_when_there_is_little_noise(noising: Noising) -> None:
    prior, difference = PullingPrior(), 0.25
    latents = torch.randn(1, 3, 4, 4)
    low = Noising(torch.tensor([3]), torch.randn(1, 3, 4, 4))
    gradient = DDS.gradient(prior, branch(latents + difference, 0.0), branch(latents, 0.0), low, 1.0)
    weight = distillation.clean_latent_weight(3, prior.alphas_cumprod)
    torch.testing.assert_close(gradient * weight, torch.full_like(gradient, difference), atol=1e-4, rtol=1e-4)
    assert distillation.clean_latent_weight(49, prior.alphas_cumprod) == 1.0


def test_an_unknown_objective_names_the_nearest() -> None:
    assert distillation.objective("sds") is SDS
    with pytest.raises(UserError, match="did you mean 'cdgt'"):
        distillation.objective("cdtg")
