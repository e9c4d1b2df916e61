"""Warm start: a fit."""

from __future__ import annotations

import pytest
import torch

from datasets.masked_images import Batch, MaskedImages, collate
from training.curves import Curves
from training.phases import Context, build_models
from training.updates import FiniteGuard
from training.warmstart import WarmStartPhase

CPU = torch.device("cpu")


def begin(config, tiny_set, count: int) -> tuple[WarmStartPhase, Batch]:
    """The phase, and the batch of the first pictures that a test shows it again and again."""
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=("normals", "depth"))
    return WarmStartPhase(context), collate([data[i] for i in range(count)])


def test_fit_approaches_the_pictures(tiny, tiny_set):
    config = tiny(
        "warm_start.kimg=1",
        "warm_start.batch=6",
        "warm_start.perceptual=0.5",
        "warm_start.lr=0.01",
        "data.mirror=false",
    )
    phase, batch = begin(config, tiny_set, 6)
    context = phase.context
    assert phase.extras == ("normals", "depth")
    curves = []
    for step in range(60):
        phase.step(batch, step * 6)
        curves.append(context.curves.collect())
    for name, share in (("fit/image", 0.8), ("fit/mask", 0.95), ("fit/depth", 0.8)):
        assert curves[-1][name] < share * curves[0][name], name
    assert context.models.generator.mapping.w_avg.abs().max() > 0


def test_beta_falls_geometrically_in_its_time(tiny, tiny_set):
    config = tiny(
        "warm_start.kimg=1",
        "warm_start.beta_kimg=0.008",
        "warm_start.batch=4",
        "warm_start.beta=0.025",
        "data.mirror=false",
    )
    phase, batch = begin(config, tiny_set, 4)
    context = phase.context
    seen = []
    for step in range(4):
        phase.step(batch, step * 4)
        seen.append(context.models.generator.decoder.sigmoid_beta.item())
    assert seen == pytest.approx([0.05, 0.025, 0.025, 0.025])  # from 0.1


def test_encoder_learns_first_while_the_generator_is_held(tiny, tiny_set):
    config = tiny(
        "warm_start.kimg=1",
        "warm_start.batch=6",
        "warm_start.encoder_kimg=0.18",
        "warm_start.lr_encoder=0.01",
        "warm_start.aggregate=0.02",
        "warm_start.dreams=1",
        "data.mirror=false",
    )
    phase, batch = begin(config, tiny_set, 6)
    context = phase.context
    generator = context.models.generator
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    curves = []
    for step in range(30):
        phase.step(batch, step * 6)
        curves.append(context.curves.collect())
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())
    assert "shape/eikonal" not in curves[0]  # it costs second derivatives, and is the generator's alone
    assert curves[-1]["fit/image"] < curves[0]["fit/image"]
    phase.step(batch, 30 * 6)
    assert "shape/eikonal" in context.curves.collect()
    changed = [name for name, p in generator.named_parameters() if not torch.equal(before[name], p)]
    assert len(changed) > 0.9 * len(list(generator.parameters()))
