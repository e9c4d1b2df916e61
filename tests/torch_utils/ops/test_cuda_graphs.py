"""Every native operation can be captured in a CUDA graph, and replayed with other inputs: it launches on
torch's current stream and never waits for the GPU."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import assert_near, captured, need_kernels
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.fused_mlp import fused_mlp
from torch_utils.ops.march_rays import march_rays
from torch_utils.ops.triplane_sample import triplane_sample
from torch_utils.ops.upfirdn2d import upsample2d


def march(density, values, part_sdf):
    depth = torch.linspace(1, 2, 24, device=density.device).expand(50, 24)
    rays = march_rays(density, depth, values, part_sdf, marching="published", sharpness=3.0, impl="native")
    return torch.cat([rays.values, rays.mask, rays.depth[:, None], rays.weight[:, None]], dim=-1)


# operation, function, shapes of its inputs, whether its second derivative is an operation too
CASES = {
    "bias_act": (lambda x, b: bias_act(x, b, act="swish", impl="native"), ((2, 8, 40, 40), (8,)), True),
    # a filter from the GPU itself: a copy from the CPU cannot be captured
    "upfirdn2d": (
        lambda x: upsample2d(x, x.detach()[0, 0, :4, :4], impl="native"),
        ((2, 8, 40, 40),),
        False,  # it is linear
    ),
    "march_rays": (march, ((50, 24), (50, 24, 8), (50, 24, 5)), False),
    "triplane_sample": (
        lambda planes, points: triplane_sample(
            planes, points, projection="orthogonal", box_warp=8.0, impl="native"
        ),
        ((2, 3, 8, 16, 16), (2, 500, 3)),
        True,
    ),
    "fused_mlp": (
        lambda *each: fused_mlp(*each, impl="native"),
        ((500, 8), (3, 16, 8), (3, 16), (3, 1, 16), (3, 1)),
        True,
    ),
}


def derivatives(function, twice, *inputs):
    """Value, gradients, and the gradients of a loss on the first input's, by those that have one."""
    y = function(*inputs)
    first = torch.autograd.grad(y.square().sum(), inputs, create_graph=twice)
    if not twice:
        return [y, *first]
    second = torch.autograd.grad(first[0].square().sum(), inputs, allow_unused=True)
    return [y, *first, *(each for each in second if each is not None)]


@pytest.mark.cuda
@pytest.mark.parametrize("operation", CASES)
def test_replays_with_new_values(operation):
    need_kernels(operation)
    function, shapes, twice = CASES[operation]
    inputs = [torch.randn(shape).cuda().requires_grad_() for shape in shapes]

    def run(*given):
        return derivatives(function, twice, *given)

    graph, results = captured(run, inputs)
    for _ in range(2):
        with torch.no_grad():
            for each in inputs:
                each.copy_(torch.randn(each.shape))
        graph.replay()
        expected = run(*(each.detach().clone().requires_grad_() for each in inputs))
        # the same kernels; only what atomics and sums over blocks add up may differ in its last digits
        assert_near(results, expected, 1e-5)


@pytest.mark.parametrize("operation", CASES)
def test_cases_run_at_all(operation):
    function, shapes, twice = CASES[operation]
    found = derivatives(function, twice, *(torch.randn(shape).requires_grad_() for shape in shapes))
    assert all(each.isfinite().all() for each in found)
