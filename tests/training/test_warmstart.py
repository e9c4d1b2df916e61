"""Warm start: the losses of the fit, and a fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from datasets.masked_images import MaskedImages, collate
from training import warmstart
from training.curves import Curves
from training.generator import Rendering
from training.phases import Context, build_models
from training.updates import FiniteGuard
from training.views import one_hot
from training.warmstart import WarmStartPhase

CPU = torch.device("cpu")


def rendering(**tensors: torch.Tensor) -> Rendering:
    empty = torch.zeros(1, 1, 4, 4)
    fields = {"image_raw": empty, "features_raw": empty, "depth": empty, "weight": empty}
    return Rendering(**{**fields, **tensors})


def test_right_mask_costs_almost_nothing_and_a_wrong_one_much():
    classes = one_hot(torch.randint(0, 3, (1, 4, 4)), 3)
    right = rendering(mask=classes * 2 - 1, mask_raw=classes * 2 - 1)
    wrong = replace(right, mask=1 - classes * 2)
    assert warmstart.mask_loss(right, classes) < 0.001
    assert warmstart.mask_loss(wrong, classes) > 5


def test_depth_counts_on_the_foreground_only():
    wanted = torch.zeros(1, 1, 8, 8)
    wanted[..., :4] = 2.5  # left half foreground
    foreground = (wanted[..., ::2, ::2] > 0).float()
    depth = torch.full((1, 1, 4, 4), 3.0)
    depth[..., 0] = 2.7
    # columns 0 of the raw picture is inside; column 1 touches the border of the antialiasing filter
    assert warmstart.depth_loss(depth, wanted, foreground).item() == pytest.approx(0.2, abs=1e-5)
    assert warmstart.depth_loss(depth, torch.zeros_like(wanted), foreground) == 0


def test_gradient_difference_ignores_a_change_of_brightness():
    image = torch.rand(1, 3, 16, 16)
    assert warmstart.gradient_difference((image + 0.3) - image).item() == pytest.approx(0, abs=1e-5)
    assert warmstart.gradient_difference(image - image.roll(1, 3)) > 0.1


def test_fit_approaches_the_pictures(tiny, tiny_set):
    config = tiny(
        "warm_start.kimg=1",
        "warm_start.batch=6",
        "warm_start.perceptual=0.5",
        "warm_start.lr=0.01",
        "data.mirror=false",
    )
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=("normals", "depth"))
    batch = collate([data[i] for i in range(6)])
    phase = WarmStartPhase(context)
    assert phase.extras == ("normals", "depth")
    curves = []
    for step in range(60):
        phase.step(batch, step * 6)
        curves.append(context.curves.collect())
    for name, share in (("fit/image", 0.8), ("fit/mask", 0.95), ("fit/depth", 0.8)):
        assert curves[-1][name] < share * curves[0][name], name
    assert context.models.generator.mapping.w_avg.abs().max() > 0


def test_beta_falls_geometrically_over_the_first_half(tiny, tiny_set):
    config = tiny("warm_start.kimg=0.016", "warm_start.batch=4", "warm_start.beta=0.025", "data.mirror=false")
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=("normals", "depth"))
    phase = WarmStartPhase(context)
    seen = []
    for step in range(4):
        phase.step(collate([data[i] for i in range(4)]), step * 4)
        seen.append(context.models.generator.decoder.sigmoid_beta.item())
    assert seen == pytest.approx([0.05, 0.025, 0.025, 0.025])  # from 0.1
