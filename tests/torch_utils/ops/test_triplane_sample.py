"""triplane_sample: against the published sampler, torch's bilinear sampling, and its derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from torch_utils.ops import triplane_sample as module
from torch_utils.ops.triplane_sample import PROJECTIONS, triplane_sample

BOX = 1.4


@pytest.mark.parametrize("which", ["texture", "shape"])
def test_values_equal_the_published_ones(parity, which):
    fixture = {key: torch.from_numpy(value) for key, value in parity("triplane_decoder").items()}
    planes, points = fixture[f"planes_{which}"], fixture["xyz"]
    each = triplane_sample(planes, points, projection="published", box_warp=1.0, reduce="none")
    # float32 weights of four corners: a few units in the last place of values of about 3
    torch.testing.assert_close(each, fixture[f"features_{which}"], rtol=0, atol=2e-6)
    mean = triplane_sample(planes, points, projection="published", box_warp=1.0)
    torch.testing.assert_close(mean, each.mean(1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_equals_bilinear_sampling(projection):
    planes, points = scene(channels=5, height=6, width=9, count=200)
    y = triplane_sample(planes, points, projection=projection, box_warp=BOX)
    torch.testing.assert_close(y, by_grid_sample(planes, points, projection), rtol=0, atol=1e-12)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_gradients_equal_bilinear_sampling(projection):
    planes, points = (tensor.requires_grad_() for tensor in scene(count=50))
    y = triplane_sample(planes, points, projection=projection, box_warp=BOX)
    cotangent = torch.randn_like(y)
    found = torch.autograd.grad(y, (planes, points), cotangent)
    expected = torch.autograd.grad(by_grid_sample(planes, points, projection), (planes, points), cotangent)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_derivatives(reduce):
    planes, points = (tensor.requires_grad_() for tensor in scene(channels=2, height=3, width=2, count=4))

    def function(planes, points):
        return triplane_sample(planes, points, projection="orthogonal", box_warp=BOX, reduce=reduce)

    torch.autograd.gradcheck(function, (planes, points))
    torch.autograd.gradgradcheck(function, (planes, points))


def test_eikonal_gradient_by_finite_differences():
    """The gradient by the planes of a loss on the gradient by the points, as training needs it."""
    planes, points = scene(count=8)

    def eikonal(planes):
        leaf = points.clone().requires_grad_()
        y = triplane_sample(planes, leaf, projection="orthogonal", box_warp=BOX).square().sum()
        slope = torch.autograd.grad(y, leaf, create_graph=True)[0]
        return (slope.norm(dim=-1) - 1).square().mean()

    torch.autograd.gradcheck(eikonal, (planes.requires_grad_(),))


def test_points_gradient_alone_does_not_pay_for_the_planes(monkeypatch):
    planes, points = (tensor.requires_grad_() for tensor in scene(count=8))
    y = triplane_sample(planes, points, projection="orthogonal", box_warp=BOX)
    monkeypatch.setattr(module, "scatter", lambda *_: pytest.fail("the planes' gradient was computed"))
    torch.autograd.grad(y.sum(), points, create_graph=True)


def test_pixel_centres_by_hand():
    # 2 x 2 pixels over a box of side 2: centres at -0.5 and 0.5; plane x-y only, the others are zero
    planes = torch.zeros(1, 3, 1, 2, 2)
    planes[0, 0, 0] = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    points = torch.tensor(
        [[[-0.5, -0.5, 0.9], [0.5, -0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 0.5, 0.0], [1.6, 0.0, 0.0]]]
    )
    y = triplane_sample(planes, points, projection="orthogonal", box_warp=2.0)
    expected = [1 / 3, 2 / 3, 15 / 4 / 3, 8 / 2 / 3, 0.0]  # half outside: half the value; outside: zero
    torch.testing.assert_close(y.flatten(), torch.tensor(expected))


def test_orthogonal_planes_are_three_different_ones():
    points = torch.tensor([[[0.1, 0.2, 0.3]]])
    ramp = (torch.arange(8.0) + 0.5) / 8 - 0.5  # a plane whose value is the horizontal coordinate
    planes = ramp.expand(1, 3, 1, 8, 8)
    across = triplane_sample(planes, points, projection="orthogonal", box_warp=1.0, reduce="none").flatten()
    torch.testing.assert_close(across, torch.tensor([0.1, 0.1, 0.2]))
    down = triplane_sample(planes.mT, points, projection="orthogonal", box_warp=1.0, reduce="none").flatten()
    torch.testing.assert_close(down, torch.tensor([0.2, 0.3, 0.3]))


def test_far_and_undefined_points():
    planes, _ = scene()
    points = torch.tensor([[[1e9, 0.0, 0.0], [-1e30, 1e30, torch.inf], [torch.nan, 0.0, 0.0]]]).double()
    y = triplane_sample(planes[:1], points, projection="orthogonal", box_warp=BOX)
    assert y[0, 0].isfinite().all()
    assert torch.equal(y[0, 1], torch.zeros_like(y[0, 1]))
    assert y[0, 2].isnan().all()  # visible, and no row out of range


def test_no_points():
    planes, points = scene(count=0)
    assert triplane_sample(planes, points, projection="orthogonal", box_warp=BOX).shape == (2, 0, 3)


def scene(channels=3, height=4, width=5, count=8):
    """Planes and points in float64; some points lie outside the box."""
    planes = torch.randn(2, 3, channels, height, width, dtype=torch.float64)
    return planes, (torch.rand(2, count, 3, dtype=torch.float64) - 0.5) * 1.3 * BOX


def by_grid_sample(planes, points, projection):
    sampled = 0
    for plane, axes in zip(planes.unbind(1), PROJECTIONS[projection], strict=True):
        grid = points[:, None][..., list(axes)] * 2 / BOX
        sampled = sampled + F.grid_sample(plane, grid, align_corners=False)[:, :, 0].mT / 3
    return sampled
