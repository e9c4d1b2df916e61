"""Warm start: the latents' own Adam, their distribution, the fit's losses, and a fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from datasets.masked_images import MaskedImages, collate
from dnnlib.errors import UserError
from training import warmstart
from training.curves import Curves
from training.generator import Rendering
from training.phases import Context, build_models
from training.updates import FiniteGuard
from training.views import one_hot
from training.warmstart import LatentTable, WarmStartPhase, normalise

CPU = torch.device("cpu")


def rendering(**tensors: torch.Tensor) -> Rendering:
    empty = torch.zeros(1, 1, 4, 4)
    fields = {"image_raw": empty, "features_raw": empty, "depth": empty, "weight": empty}
    return Rendering(**{**fields, **tensors})


def test_touched_rows_move_as_adam_moves_them():
    table = LatentTable(5, 4, 0.1, (0.5, 0.99), CPU)
    parameter = torch.nn.Parameter(table.latents[[2]].clone())
    adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.5, 0.99), eps=1e-12)
    before = table.latents.clone()
    for _ in range(3):
        gradient = torch.randn(1, 4)
        parameter.data = table.latents[[2]].clone()  # the table renormalises after every step
        parameter.grad = gradient
        adam.step()
        table.update(torch.tensor([2]), gradient)
        torch.testing.assert_close(table.latents[[2]], normalise(parameter.data), atol=1e-5, rtol=1e-5)
    untouched = [0, 1, 3, 4]
    assert table.latents[untouched].equal(before[untouched])
    assert table.updates[:, 0].tolist() == [0, 0, 3, 0, 0]


def test_picture_drawn_twice_counts_twice_and_moves_once():
    one, two = (LatentTable(3, 4, 0.1, (0.5, 0.99), CPU) for _ in range(2))
    two.latents = one.latents.clone()
    gradient = torch.randn(1, 4)
    one.update(torch.tensor([1]), 2 * gradient)
    two.update(torch.tensor([1, 1]), gradient.repeat(2, 1))
    torch.testing.assert_close(one.latents, two.latents)


def test_standardised_latents_are_like_normal_ones():
    table = LatentTable(2000, 8, 0.1, (0.5, 0.99), CPU)
    table.latents = normalise(table.latents @ torch.diag(torch.linspace(0.3, 2, 8)) + 0.7)
    table.standardise()
    covariance = table.latents.t() @ table.latents / 2000
    # rows are brought back to their norm afterwards, which undoes a little
    assert table.latents.mean(0).abs().max() < 0.1
    assert (covariance - torch.eye(8)).abs().max() < 0.25  # 2.0 before
    torch.testing.assert_close(table.latents.norm(dim=1), torch.full((2000,), 8**0.5))


def test_table_of_another_set_is_refused():
    state = LatentTable(4, 8, 0.1, (0.5, 0.99), CPU).state_dict()
    with pytest.raises(UserError, match="4 pictures, --data has 6"):
        LatentTable(6, 8, 0.1, (0.5, 0.99), CPU).load_state_dict(state)


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
    config = tiny("warm_start.kimg=1", "warm_start.batch=6", "warm_start.perceptual=0.5", "data.mirror=false")
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=("normals", "depth"))
    batch = collate([data[i] for i in range(6)])
    phase = WarmStartPhase(context, len(data))
    assert phase.extras == ("normals", "depth")
    before = phase.table.latents.clone()
    curves = []
    for step in range(60):
        phase.step(batch, step * 6)
        curves.append(context.curves.collect())
    for name, share in (("fit/image", 0.8), ("fit/mask", 0.95), ("fit/depth", 0.8)):
        assert curves[-1][name] < share * curves[0][name], name
    assert (phase.table.latents - before).abs().max() > 0.01
    assert context.models.generator.mapping.w_avg.abs().max() > 0
