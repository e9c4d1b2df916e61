"""Latents that are made standard normal."""

from __future__ import annotations

import torch
from torch.nn import functional

from datasets.masked_images import MaskedImages, collate
from training.adversarial import AdversarialPhase
from training.curves import Curves
from training.networks.encoder import Encoder, EncoderConfig, Posterior
from training.networks.mapping import MappingNetwork
from training.phases import Context, build_models
from training.updates import FiniteGuard
from training.warmstart import WarmStartPhase
from training.whitening import Moments, aggregate_distance, whiten

CPU = torch.device("cpu")
Z = 6


def stretched_encoder() -> Encoder:
    """Its latents differ in size, are correlated and off centre."""
    encoder = Encoder(EncoderConfig(3, 8, Z, width=8, width_max=8))
    with torch.no_grad():
        encoder.head.weight.mul_(torch.logspace(-0.5, 1.5, 2 * Z)[:, None])
        encoder.head.weight[Z:] *= 0.01
        encoder.head.bias.add_(torch.linspace(-1, 1, 2 * Z))
    return encoder


def observed(encoder: Encoder, pictures: torch.Tensor) -> Moments:
    moments = Moments(Z)
    moments.observe(encoder(pictures))
    return moments


def test_moments_are_those_of_what_was_seen():
    encoder, pictures = stretched_encoder(), torch.randn(400, 3, 8, 8)
    with torch.no_grad():
        posterior = encoder(pictures)
    mean, covariance, noise = observed(encoder, pictures).aggregate()
    torch.testing.assert_close(mean, posterior.mean.mean(0))
    torch.testing.assert_close(noise, posterior.log_variance.exp().mean(0))
    spread = posterior.mean.t().cov(correction=0)
    torch.testing.assert_close(covariance, spread + noise.diag(), rtol=1e-4, atol=1e-4)


def test_whitened_latents_have_the_moments_of_the_standard_normal():
    encoder, pictures = stretched_encoder(), torch.randn(400, 3, 8, 8)
    moments = observed(encoder, pictures)
    whiten(moments, encoder, [])
    mean, covariance, _ = moments.aggregate()
    torch.testing.assert_close(mean, torch.zeros(Z))
    torch.testing.assert_close(covariance, torch.eye(Z))
    mean, covariance, _ = observed(encoder, pictures).aggregate()  # what it says now, not what was computed
    # float32 sums of 400 numbers of up to a hundred
    torch.testing.assert_close(mean, torch.zeros(Z), atol=1e-3, rtol=0)
    torch.testing.assert_close(covariance.diag(), torch.ones(Z), atol=1e-3, rtol=0)


def test_directions_that_say_nothing_stay_apart_from_those_that_do():
    """Their total variances are alike, so that nothing but the noise tells them apart."""
    encoder, pictures = Encoder(EncoderConfig(3, 8, Z, width=8, width_max=8)), torch.randn(2000, 3, 8, 8)
    said = Z // 2
    with torch.no_grad():
        encoder.head.weight[said:Z] *= 0.01  # a little, so that no axis is one of its own
        encoder.head.weight[Z:] = 0
        encoder.head.bias.zero_()
        encoder.head.bias[Z : Z + said] = -9.0  # a variance of 1e-4
        spread = encoder(pictures).mean[:, :said].t().cov()
        encoder.head.weight[:said] = torch.linalg.cholesky(spread).inverse() @ encoder.head.weight[:said]
    moments = observed(encoder, pictures)
    whiten(moments, encoder, [])
    noise = encoder(pictures[:1]).log_variance[0].exp().sort().values
    # exp(-9), and 1; apart from that, 2000 pictures give the quiet directions a share of the loud ones
    torch.testing.assert_close(noise[:said], torch.full((said,), 1.234e-4), rtol=0.1, atol=0)
    torch.testing.assert_close(noise[said:], torch.ones(Z - said), rtol=0.1, atol=0)


def test_the_mapping_reads_the_same_pictures():
    encoder, pictures = stretched_encoder(), torch.randn(400, 3, 8, 8)
    mapping = MappingNetwork(Z, 4, 8, num_ws=2)
    with torch.no_grad():
        z, layer = encoder(pictures).mean, mapping.fc0
        mean, covariance, _ = observed(encoder, pictures).aggregate()
        length = (z.square().mean() + covariance.diag().mean() - z.var(0, correction=0).mean()).sqrt()

        def read(latents: torch.Tensor) -> torch.Tensor:
            bias = layer.bias * layer.bias_gain
            return functional.linear(latents, layer.weight[:, :Z] * layer.weight_gain, bias)

        before = read(z / length)
        others = layer.weight[:, Z:].clone()
        whiten(observed(encoder, pictures), encoder, [mapping])
        # float32 through a map whose scales differ by a hundred
        torch.testing.assert_close(read(encoder(pictures).mean), before, atol=1e-4, rtol=1e-3)
        assert torch.equal(layer.weight[:, Z:], others)


def test_the_aggregate_s_distance_has_the_gradient_of_its_moments():
    """Against autograd through the moments of one large batch."""
    torch.manual_seed(0)
    mean = (torch.randn(500, Z, dtype=torch.float64) * torch.linspace(0.2, 3, Z) + 1).requires_grad_()
    log_variance = (0.1 * torch.randn(500, Z, dtype=torch.float64) - 1).requires_grad_()
    posterior = Posterior(mean, log_variance)
    moments = Moments(Z)
    for name, value in vars(moments).items():
        setattr(moments, name, value.double())
    with torch.no_grad():
        moments.weight.fill_(1)
        moments.mean.copy_(mean.mean(0))
        moments.second.copy_(mean.t() @ mean / len(mean))
        moments.noise.copy_(log_variance.exp().mean(0))
    covariance = torch.cov(mean.t(), correction=0) + log_variance.exp().mean(0).diag()
    excess = covariance - torch.eye(Z, dtype=torch.float64)
    wanted = mean.mean(0).square().sum() + excess.square().sum()
    found = aggregate_distance(moments, posterior)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(*(torch.autograd.grad(x, (mean, log_variance)) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_warm_start_whitens_in_time_and_goes_on(tiny, tiny_set):
    options = ("warm_start.kimg=1", "warm_start.batch=4", "warm_start.whiten_kimg=0.008", "data.mirror=false")
    options += ("warm_start.aggregate=1",)
    config = tiny(*options)
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=("normals", "depth"))
    phase = WarmStartPhase(context)
    batch = collate([data[i] for i in range(4)])
    phase.step(batch, 0)
    assert phase.reconstruction.moments.aggregate()[0].abs().max() > 0
    assert "fit/aggregate" not in context.curves.collect()  # that is for the adversarial phase
    phase.step(batch, 4)  # completes the 8 images
    assert phase.reconstruction.moments.mean.abs().max() == 0
    head = context.models.encoder.head
    state = phase.reconstruction.updater.optimiser.state[head.weight]
    assert state["step"] == 0 and state["exp_avg"].abs().max() == 0
    phase.step(batch, 8)
    assert all(torch.isfinite(p).all() for p in context.models.generator.parameters())
    assert state["step"] == 1
    restored = WarmStartPhase(context)
    restored.load_state_dict(phase.state_dict())
    assert torch.equal(restored.reconstruction.moments.second, phase.reconstruction.moments.second)


def test_a_warm_start_ends_with_standard_normal_latents(tiny, tiny_set):
    config = tiny("warm_start.kimg=1", "warm_start.batch=4", "warm_start.whiten_kimg=1", "data.mirror=false")
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=("normals", "depth"))
    phase = WarmStartPhase(context)
    for _ in range(3):
        phase.step(collate([data[i] for i in range(4)]), 0)
    moments = phase.reconstruction.moments
    assert moments.mean.abs().max() > 0
    phase.finish()
    assert moments.mean.abs().max() == 0
    mapping, average = context.models.generator.mapping, context.models.average.mapping
    assert torch.equal(mapping.fc0.weight, average.fc0.weight)


def test_moments_are_kept_beside_adversaries(tiny, tiny_set):
    options = ("warm_start.kimg=1", "warm_start.keep=0.5", "warm_start.aggregate=0.1", "batch=4")
    config = tiny(*options, "schedule.generator_delay_kimg=0", "data.mirror=false")
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=("normals", "depth"))
    phase = AdversarialPhase(context)
    batch = collate([data[i] for i in range(4)])
    phase.step(batch, 0)
    phase.step(batch, 4)
    assert context.curves.collect()["fit/aggregate"] > 0
    restored = AdversarialPhase(context)
    restored.load_state_dict(phase.state_dict())
    assert torch.equal(restored.reconstruction.moments.second, phase.reconstruction.moments.second)


def test_without_it_latents_stay(tiny, tiny_set):
    config = tiny("warm_start.kimg=1", "warm_start.batch=4")
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=("normals", "depth"))
    phase = WarmStartPhase(context)
    phase.step(collate([data[i] for i in range(4)]), 0)
    assert phase.reconstruction.moments.mean.abs().max() > 0
