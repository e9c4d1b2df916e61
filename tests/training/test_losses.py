import math

import pytest
import torch

from training import losses


def test_agrees_with_published_values(parity):
    arrays = {name: torch.as_tensor(value) for name, value in parity("losses").items()}
    got = {
        "sdf_consistency": losses.sdf_consistency(arrays["sdf"], arrays["part_sdf"]),
        "density_consistency": losses.density_consistency(arrays["density"], arrays["part_density"]),
        "eikonal": losses.eikonal(arrays["gradient"]),
        "minimal_surface": losses.minimal_surface(arrays["sdf"]),
    }
    for name, value in got.items():
        torch.testing.assert_close(value, arrays[name], atol=1e-5, rtol=1e-5)


def test_adversarial_losses_by_hand():
    logits = torch.tensor([[0.0], [2.0]])
    positive, negative = math.log(1 + math.exp(2)), math.log(1 + math.exp(-2))
    assert losses.generator_adversarial(logits) == pytest.approx((math.log(2) + negative) / 2)
    assert losses.discriminator_real(logits) == pytest.approx((math.log(2) + negative) / 2)
    assert losses.discriminator_fake(logits) == pytest.approx((math.log(2) + positive) / 2)


def test_r1_of_a_linear_discriminator_is_its_squared_weights():
    image, raw = torch.randn(3, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 2, 2, requires_grad=True)
    a, b = torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, 2, 2, requires_grad=True)
    logits = (image * a).sum((1, 2, 3))[:, None] + (raw * b).sum((1, 2, 3))[:, None]
    want = a.square().sum() + b.square().sum()
    penalty = losses.r1_per_image(logits, (image, raw))
    torch.testing.assert_close(penalty, want.expand(3))
    torch.testing.assert_close(torch.autograd.grad(penalty.mean(), a)[0], 2 * a)


def test_eikonal_and_minimal_surface_by_hand():
    gradient = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = losses.eikonal(gradient)
    assert loss.item() == pytest.approx((16 + 1) / 2)
    loss.backward()
    assert gradient.grad.isfinite().all()  # a zero gradient (outside the box) must not poison the step
    assert losses.minimal_surface(torch.tensor([0.0, -0.01])) == pytest.approx((1 + math.exp(-1)) / 2)


def test_consistency_teaches_the_parts_only():
    sdf, part_sdf = torch.randn(2, 5, 1, requires_grad=True), torch.rand(2, 5, 3, requires_grad=True)
    (losses.sdf_consistency(sdf, part_sdf) + losses.density_consistency(sdf, part_sdf)).backward()
    assert sdf.grad is None and part_sdf.grad.abs().sum() > 0


def test_consistency_by_hand():
    part_sdf = torch.tensor([[0.3, 0.2], [-0.1, 0.5]])
    got = losses.sdf_consistency(torch.tensor([[0.5], [-3.0]]), part_sdf)
    assert got == pytest.approx((0.3**2 + 0) / 2)
    got = losses.density_consistency(torch.tensor([[1.0]]), torch.tensor([[0.5, 0.25]]))
    assert got == pytest.approx(0.25**2)


def test_part_colour_wants_each_class_alone_on_the_background():
    image = torch.full((1, 3, 1, 2), 0.5, requires_grad=True)
    mask = torch.tensor([[[[0.9, -1.0]], [[-1.0, 0.9]]]])  # left pixel is class 0, right pixel class 1
    parts = torch.full((1, 2, 3, 1, 2), -1.0)
    parts[0, 0, :, 0, 0] = parts[0, 1, :, 0, 1] = 0.5
    assert losses.part_colour(parts, image, mask) == 0
    assert losses.part_colour(parts.flip(1), image, mask) == pytest.approx(1.5**2)
    assert not losses.part_colour(parts, image, mask).requires_grad


def test_nearby_points_are_in_the_box_and_at_the_distance():
    near, far = losses.nearby_points(2, 500, box_warp=0.8, distance=0.004)
    assert near.shape == (2, 500, 3) and near.abs().max() <= 0.4
    torch.testing.assert_close((far - near).norm(dim=-1), torch.full((2, 500), 0.004), atol=1e-6, rtol=1e-3)
    assert losses.density_smoothness(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0])) == 0.25


def test_feature_matching_does_not_depend_on_the_scale_of_a_layer():
    wanted = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    features = [(w + torch.randn_like(w)).requires_grad_() for w in wanted]
    value = losses.feature_matching(features, wanted)
    scaled = losses.feature_matching([100 * features[0], features[1]], [100 * wanted[0], wanted[1]])
    torch.testing.assert_close(scaled, value)  # rounding of float32 alone
    assert losses.feature_matching(wanted, wanted) == 0
    doubled = losses.feature_matching([2 * w for w in wanted], wanted)
    torch.testing.assert_close(doubled, torch.tensor(1.0))
    value.backward()
    assert all(f.grad.abs().sum() > 0 for f in features)
