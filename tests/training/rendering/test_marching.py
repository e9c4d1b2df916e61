import math

import pytest
import torch

from training.rendering.marching import (
    composite,
    expected_depth,
    interval_weights,
    sample_weights,
    unsorted_weights,
)


def test_agrees_with_the_published_marcher(parity):
    arrays = {name: torch.as_tensor(value) for name, value in parity("marcher").items()}
    depth = arrays["depths"].squeeze(-1)
    weights = interval_weights(arrays["densities"].squeeze(-1), depth, "published")
    torch.testing.assert_close(weights, arrays["weights"].squeeze(-1), atol=1e-5, rtol=1e-4)
    at_samples = sample_weights(weights)
    rgb = composite(arrays["colors"], at_samples) * 2 - 1
    torch.testing.assert_close(rgb, arrays["rgb"], atol=1e-4, rtol=1e-4)
    # the fixture's depths are within the range of its samples, so that clamping would change nothing
    torch.testing.assert_close(
        expected_depth(depth, at_samples), arrays["depth"].squeeze(-1), atol=1e-4, rtol=1e-4
    )


def test_two_intervals_by_hand():
    density, depth = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.0, 0.5, 1.0])
    first, second = (
        1 - math.exp(-1.0),
        math.exp(-1.0) * (1 - math.exp(-2.0)),
    )  # mid densities 2 and 4, length 0.5
    weights = interval_weights(density, depth, "sigma")
    torch.testing.assert_close(weights, torch.tensor([first, second]))
    at_samples = sample_weights(weights)
    torch.testing.assert_close(at_samples, torch.tensor([first / 2, (first + second) / 2, second / 2]))
    colour = torch.tensor([[0.0], [1.0], [0.5]])
    torch.testing.assert_close(composite(colour, at_samples), torch.tensor([first * 0.5 + second * 0.75]))


def test_the_order_of_the_samples_does_not_matter():
    depth, density, colour = torch.rand(2, 9).sort(-1)[0], torch.rand(2, 9) * 5, torch.rand(2, 9, 3)
    shuffle = torch.randperm(9)
    weights = sample_weights(interval_weights(density, depth, "sigma"))
    shuffled = unsorted_weights(density[:, shuffle], depth[:, shuffle], "sigma")
    torch.testing.assert_close(shuffled, weights[:, shuffle])
    torch.testing.assert_close(composite(colour[:, shuffle], shuffled), composite(colour, weights))
    parts = torch.rand(2, 4, 9)  # many densities on the same rays
    torch.testing.assert_close(
        unsorted_weights(parts[..., shuffle], depth[:, None, shuffle], "published"),
        sample_weights(interval_weights(parts, depth[:, None], "published"))[..., shuffle],
    )


def test_empty_space_is_hazy_when_published_and_clear_otherwise():
    depth = torch.linspace(2.25, 3.3, 20)
    opacity = interval_weights(torch.zeros(20), depth, "published").sum()
    assert opacity == pytest.approx(1 - math.exp(-1.05 * math.log1p(math.exp(-1))), rel=1e-4)  # 28 %
    assert interval_weights(torch.zeros(20), depth, "sigma").sum() == 0


def test_opaque_rays_sum_to_one():
    weights = interval_weights(torch.full((8,), 1e4), torch.linspace(0, 1, 8), "sigma")
    assert weights.sum() == pytest.approx(1) and weights[0] == pytest.approx(1)


def test_depth_of_nothing_is_infinite_with_a_zero_gradient():
    density = torch.zeros(2, 4, requires_grad=True)
    depth = torch.linspace(1, 2, 4).expand(2, 4)
    expected = expected_depth(depth, sample_weights(interval_weights(density, depth, "sigma")))
    assert torch.isinf(expected).all()
    expected.clamp(max=2.0).sum().backward()
    assert torch.equal(density.grad, torch.zeros(2, 4))


@pytest.mark.parametrize("marching", ["published", "sigma"])
def test_gradients(marching):
    depth = torch.rand(2, 6, dtype=torch.float64).sort(-1)[0]
    density = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)

    def of(density):
        weights = sample_weights(interval_weights(density, depth, marching))
        return weights, expected_depth(depth, weights)

    assert torch.autograd.gradcheck(of, (density,))


def test_unknown_marching():
    with pytest.raises(ValueError, match="'published', 'sigma'"):
        interval_weights(torch.zeros(3), torch.zeros(3), "softplus")
