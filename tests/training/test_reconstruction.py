"""The losses of a reconstruction, and reconstructions beside adversaries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from datasets.masked_images import MaskedImages, collate
from training import reconstruction
from training.adversarial import AdversarialPhase
from training.curves import Curves
from training.generator import Rendering
from training.networks.inputs import one_hot
from training.phases import Context, build_models
from training.updates import FiniteGuard

CPU = torch.device("cpu")


def rendering(**tensors: torch.Tensor) -> Rendering:
    empty = torch.zeros(1, 1, 4, 4)
    fields = {"image_raw": empty, "features_raw": empty, "depth": empty, "weight": empty}
    return Rendering(**{**fields, **tensors})


def test_right_mask_costs_almost_nothing_and_a_wrong_one_much():
    classes = one_hot(torch.randint(0, 3, (1, 4, 4)), 3)
    right = rendering(mask=classes * 2 - 1, mask_raw=classes * 2 - 1)
    wrong = replace(right, mask=1 - classes * 2)
    equal = torch.ones(1, 1, 4, 4)
    assert reconstruction.mask_loss(right, classes, equal) < 0.001
    assert reconstruction.mask_loss(wrong, classes, equal) > 5


def test_balanced_pixels_give_rare_classes_their_share():
    masks = torch.zeros(2, 8, 8, dtype=torch.long)
    masks[0, 0, :2] = 1  # 2 of 128 pixels
    classes = one_hot(masks, 3)  # the third class is nowhere
    equal = reconstruction.pixel_weights(classes, 0.0)
    assert equal.eq(1).all()
    full = reconstruction.pixel_weights(classes, 1.0)
    assert full.mean().item() == pytest.approx(1, abs=1e-6)
    assert full[0, 0, 0, :2].sum().item() == pytest.approx(full.sum().item() / 2, rel=1e-5)
    half = reconstruction.pixel_weights(classes, 0.5)
    # the ratio of two pixels is the square root of the ratio of their classes' sizes
    assert (half[0, 0, 0, 0] / half[1, 0, 0, 0]).item() == pytest.approx((126 / 2) ** 0.5, rel=1e-5)


def test_pixels_weigh_errors_of_picture_and_mask():
    image = torch.zeros(1, 3, 4, 4)
    off = rendering(image=image + torch.eye(4), image_raw=image)
    weights = torch.ones(1, 1, 4, 4) - torch.eye(4)  # the errors lie where nothing counts
    assert reconstruction.image_terms(1.0, 0.0, off, image, weights)[0].value == 0
    assert reconstruction.image_terms(1.0, 0.0, off, image, torch.ones(1, 1, 4, 4))[0].value == 0.25
    classes = one_hot(torch.eye(4).long()[None], 2)
    background = rendering(mask=one_hot(torch.zeros(1, 4, 4), 2), mask_raw=one_hot(torch.zeros(1, 4, 4), 2))
    assert reconstruction.mask_loss(background, classes, weights) < 0.02
    assert reconstruction.mask_loss(background, classes, torch.ones(1, 1, 4, 4)) > 1


def test_depth_counts_on_the_foreground_only():
    wanted = torch.zeros(1, 1, 8, 8)
    wanted[..., :4] = 2.5  # left half foreground
    foreground = (wanted[..., ::2, ::2] > 0).float()
    depth = torch.full((1, 1, 4, 4), 3.0)
    depth[..., 0] = 2.7
    # columns 0 of the raw picture is inside; column 1 touches the border of the antialiasing filter
    assert reconstruction.depth_loss(depth, wanted, foreground).item() == pytest.approx(0.2, abs=1e-5)
    assert reconstruction.depth_loss(depth, torch.zeros_like(wanted), foreground) == 0


def test_gradient_difference_ignores_a_change_of_brightness():
    image = torch.rand(1, 3, 16, 16)
    assert reconstruction.gradient_difference((image + 0.3) - image).item() == pytest.approx(0, abs=1e-5)
    assert reconstruction.gradient_difference(image - image.roll(1, 3)) > 0.1


@pytest.mark.parametrize("per_pass", [0, 2])
def test_adversarial_training_keeps_a_share_of_reconstructions(tiny, tiny_set, per_pass):
    kept = ("warm_start.keep=0.5", "warm_start.keep_weight=3", "warm_start.keep_features=1")
    options = (*kept, "warm_start.normals=0", "data.mirror=false", "discriminator.group_size=1")
    config = tiny(*options, f"batch_per_pass={per_pass}")
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    phase = AdversarialPhase(context)
    assert phase.extras == ("depth",)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16, extras=phase.extras)
    before = [p.clone() for p in context.models.encoder.parameters()]
    # as many reconstructions in every pass: a batch of 4 has two, or one in each of two passes
    phase.step(collate([data[i] for i in range(4)]), 0)
    seen = context.curves.collect()
    fit = {f"fit/{name}" for name in ("image", "mask", "depth", "divergence", "features")}
    assert fit | {"generator/image"} <= seen.keys()
    changed = [
        not torch.equal(a, b) for a, b in zip(before, context.models.encoder.parameters(), strict=True)
    ]
    assert all(changed)


def test_without_a_kept_share_there_is_no_encoder(tiny):
    config = tiny()
    context = Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)
    assert context.models.encoder is None
    assert "encoder" not in context.models.named()
    assert AdversarialPhase(context).extras == ()
