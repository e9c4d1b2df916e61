"""Recomputation: autograd keeps less, and the gradients stay what they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.kept import kept_bytes
from tests.tiny_generator import TINY_GENERATOR
from training import recompute
from training.adversarial import AdversarialPhase, draw_scenes
from training.curves import Curves
from training.generator import Generator, Want
from training.phases import Context, build_models
from training.rendering.cameras import frontal_camera
from training.schedules import moment
from training.updates import FiniteGuard


def test_only_inputs_are_kept():
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2), nn.Tanh())
    x = torch.randn(10, 4, requires_grad=True)

    def run(again):
        return recompute.call(network, x, again=again)

    stored, again = (kept_bytes(lambda each=each: run(each), network.parameters()) for each in (False, True))
    inputs, hidden, outputs = (10 * 4 * width for width in (4, 64, 2))
    assert again == inputs and stored == inputs + hidden + outputs
    gradients = [torch.autograd.grad(run(each).sum(), [x, *network.parameters()]) for each in (False, True)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("mask", [False, True])
def test_super_resolutions_keep_their_inputs_only(mask):
    generator, camera = Generator(TINY_GENERATOR), frontal_camera()
    ws = generator.map(torch.randn(1, 8), camera).detach()
    planes = generator.planes(ws)

    def kept(**options):
        """Beside what the volume rendering keeps, which is always the same."""
        return kept_bytes(
            lambda: generator.synthesise(ws, camera, planes=planes, deterministic=True, **options),
            generator.parameters(),
        ) - kept_bytes(
            lambda: generator.synthesise(
                ws, camera, planes=planes, deterministic=True, want=Want(image=False, mask=mask)
            ),
            generator.parameters(),
        )

    want = Want(mask=mask)
    # raw pictures, features and w against all layers at twice the side
    assert kept(want=want, checkpointing=True) < kept(want=want) / 10


def test_a_chunked_generator_step_keeps_less_and_learns_the_same(tiny):
    config = tiny("checkpointing=true", "loss.part_colour=0")
    models = build_models(config, torch.device("cpu"))
    size = config.generator
    rays = size.raw_resolution**2 * config.batch
    now = moment(config.schedule, 100_000, config.batch)
    scenes = draw_scenes(size.z_dim, frontal_camera().expand(config.batch, -1), now.swap_probability)
    parameters = [x for network in models.named().values() for x in network.parameters()]
    kept, gradients = [], []
    for chunk in (0, rays // 4):  # rays of all pictures together
        chunked = replace(config, ray_chunk=chunk)
        context = Context(chunked, models, Curves(), FiniteGuard(1), torch.device("cpu"))
        phase = AdversarialPhase(context)
        torch.manual_seed(1)
        models.generator.zero_grad()
        with phase.frozen_judges():
            kept.append(kept_bytes(lambda phase=phase: phase.generator_gradients(scenes, now), parameters))
        gradients.append([x.grad for x in models.generator.parameters() if x.grad is not None])
    assert kept[1] < kept[0]
    # Sums over samples are added up in another order; gradients of the planes are sums of thousands.
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.fixture
def phases(tiny):
    """A phase whose generator step recomputes nothing, and one that recomputes, of the same networks."""
    config, device = tiny("checkpointing=false"), torch.device("cpu")
    models = build_models(config, device)
    configs = config, replace(config, checkpointing=True)
    return [AdversarialPhase(Context(each, models, Curves(), FiniteGuard(1), device)) for each in configs]


def test_a_generator_step_recomputes_super_resolutions_and_discriminators(phases, monkeypatch):
    models, config = phases[0].context.models, phases[0].config
    batch, size = config.batch, config.generator
    now = moment(config.schedule, 100_000, batch)
    scenes = draw_scenes(size.z_dim, frontal_camera().expand(batch, -1), now.swap_probability)
    parameters = [x for network in models.named().values() for x in network.parameters()]
    recomputed, checkpoint = [], recompute.checkpoint

    def watched(module, *inputs, **options):
        recomputed.append(module)
        return checkpoint(module, *inputs, **options)

    monkeypatch.setattr(recompute, "checkpoint", watched)
    kept, gradients = [], []
    for phase in phases:
        torch.manual_seed(1)  # of the noise and of the samples along rays
        models.generator.zero_grad()
        with phase.frozen_judges():
            kept.append(kept_bytes(lambda phase=phase: phase.generator_gradients(scenes, now), parameters))
        gradients.append([x.grad for x in models.generator.parameters() if x.grad is not None])
    assert set(recomputed) == {
        models.generator.superresolution,
        models.generator.superresolution_semantic,
        models.discriminator,
        models.discriminator_mask,
    }
    assert kept[1] < kept[0]
    torch.testing.assert_close(*gradients)
