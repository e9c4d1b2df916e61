"""What all native operations have in common: they are there, and go along with torch.compile and autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_utils import extension
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.fused_mlp import fused_mlp
from torch_utils.ops.march_rays import march_rays
from torch_utils.ops.triplane_sample import triplane_sample
from torch_utils.ops.types import of_one_type
from torch_utils.ops.upfirdn2d import setup_filter, upsample2d

IMPLEMENTATIONS = ("reference", "native")


def _bias_act(size: int, impl: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    return lambda x: bias_act(x, act="lrelu", impl=impl), torch.randn(2, 3, size, size + 1)


def _upfirdn2d(size: int, impl: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    f = setup_filter([1, 3, 3, 1])
    return lambda x: upsample2d(x, f, impl=impl), torch.randn(2, 3, size, size + 1)


def _march_rays(size: int, impl: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    depth, values = torch.rand(size, 5).sort().values, torch.randn(size, 5, 3)
    return (
        lambda x: march_rays(x, depth, values, marching="sigma", impl=impl).values,
        torch.rand(size, 5),
    )


def _triplane_sample(size: int, impl: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    points = torch.rand(1, 4 * size, 3) - 0.5
    how = {"projection": "orthogonal", "box_warp": 1.0, "impl": impl}
    return lambda x: triplane_sample(x, points, **how), torch.randn(1, 3, 2, size, size + 1)


def _fused_mlp(size: int, impl: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    parameters = torch.randn(2, 8, 3), torch.randn(2, 8), torch.randn(2, 1, 8), torch.randn(2, 1)
    return lambda x: fused_mlp(x, *parameters, impl=impl), torch.randn(size, 3)


CASES = {
    case.__name__[1:]: case for case in (_bias_act, _upfirdn2d, _march_rays, _triplane_sample, _fused_mlp)
}


def test_every_operation_is_among_the_cases():
    assert CASES.keys() == extension.NATIVE.keys()


@pytest.mark.timeout(800)  # may have to build
@pytest.mark.parametrize("operation", extension.NATIVE)
def test_every_operation_is_there(operation):
    """Tests of native operations may skip without a compiler; nothing may where there is one."""
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()
    if not cpp_extension.check_compiler_ok_for_platform(compiler):
        pytest.skip(f"there is no {compiler}")
    assert "cpu" in extension.loaded(operation)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("operation", CASES)
def test_sizes_may_be_symbols(operation, impl):
    """As torch.compile takes them from the second shape on."""
    torch.manual_seed(0)
    function, x = CASES[operation](9, impl)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), function(x))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("operation", CASES)
def test_gradients_pass_under_autocast(operation, impl):
    torch.manual_seed(0)
    function, x = CASES[operation](8, impl)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = function(x)
    (found,) = torch.autograd.grad(y.float().square().sum(), x)
    exact = function(x)
    (expected,) = torch.autograd.grad(exact.square().sum(), x)
    # a few units in bfloat16's last place (2^-8) of the largest number
    for one, other in ((y.float(), exact), (found, expected)):
        assert (one - other).abs().max() <= 0.03 * other.abs().max()


def test_several_types_become_the_one_that_holds_all():
    half, brain = torch.ones(1, dtype=torch.float16), torch.ones(1, dtype=torch.bfloat16)
    assert {each.dtype for each in of_one_type(half, brain)} == {torch.float32}
    assert of_one_type(half, half)[0] is half


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("operation", ["triplane_sample", "fused_mlp"])
def test_half_precision_beside_single_is_widened(operation, impl):
    function, x = CASES[operation](8, impl)
    y = function(x.bfloat16())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, function(x.bfloat16().float()))
