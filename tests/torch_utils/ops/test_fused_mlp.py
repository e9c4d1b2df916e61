"""fused_mlp: values and derivatives of both implementations against the equations, in plain PyTorch."""

from __future__ import annotations

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels import assert_near, need_kernels
from torch_utils import extension
from torch_utils.ops import fused_mlp as module
from torch_utils.ops.fused_mlp import fused_mlp

BOTH = ("reference", "native")


def by_the_equations(x, weight1, bias1, weight2, bias2):
    # Beyond the threshold torch leaves log(1 + exp(-x)) out, which is 2e-9 at its own threshold of 20.
    hidden = functional.softplus(torch.einsum("...c,pkc->...pk", x, weight1) + bias1, threshold=50)
    return (torch.einsum("...pk,pok->...po", hidden, weight2) + bias2).flatten(-2)


def inputs(points=5, channels=3, heads=2, width=4, outputs=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (points, channels),
        (heads, width, channels),
        (heads, width),
        (heads, outputs, width),
        (heads, outputs),
    )
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def derivatives(function, arguments):
    """Value, gradients, and the gradient of the eikonal loss."""
    x = arguments[0]
    y = function(*arguments)
    cotangent = ((torch.arange(y.numel()) % 17 - 7) / 8).view_as(y).to(y)  # the same in every precision
    first = torch.autograd.grad(y, arguments, cotangent, create_graph=True)
    slope = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad((slope.norm(dim=-1) - 1).square().sum(), arguments)
    return [y, *first, *second]


def relative(found, expected):
    """Largest error of each tensor, relative to its largest value, or to 1 where sums cancel."""
    return max(
        ((a - b).abs().max() / b.abs().max().clamp_min(1)).item()
        for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_CPU", 1)  # blocks of 64 points, their smallest size


def test_softplus_agrees_with_torch_everywhere():
    x = torch.tensor([-1e4, -100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 79.9, 80.1, 1e4, torch.inf, -torch.inf])
    x = torch.cat([x, torch.linspace(-30, 90, 1000)])
    # 1 + exp(x) is rounded to float32's 6e-8; relative to torch's own rounding where x is large
    torch.testing.assert_close(module.softplus(x), functional.softplus(x), atol=1e-6, rtol=1e-6)
    assert module.softplus(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_softplus_and_sigmoid_are_exact_to_the_last_digits(dtype):
    x = torch.tensor([-1e4, -86.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 100.0, 1e4], dtype=dtype)
    x = torch.cat([x, torch.linspace(-30, 30, 5000, dtype=dtype)])[:, None].requires_grad_()
    one, zero = torch.ones(1, 1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    y = fused_mlp(x, one, zero, one, zero, impl="native")
    (slope,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double()
    # log(1 + e) and 1 / (1 + e) by polynomials: 3e-7 of the value; exp(-87) stands for all that is smaller
    close = {"rtol": 3e-7 if dtype is torch.float32 else 1e-14, "atol": 1e-37}
    expected = torch.where(exact > 0, exact, 0) + torch.log1p(torch.exp(-exact.abs()))
    torch.testing.assert_close(y.double(), expected, **close)
    torch.testing.assert_close(slope.double(), torch.sigmoid(exact), **close)


def test_undefined_and_infinite_points():
    arguments = inputs(points=4, dtype=torch.float32)
    x = arguments[0].detach()
    x[1, 0], x[2, 0] = torch.nan, torch.inf
    for impl in BOTH:
        y = fused_mlp(x, *arguments[1:], impl=impl)
        assert y[1].isnan().all() and y[[0, 3]].isfinite().all()
        torch.testing.assert_close(y[[0, 3]], by_the_equations(x[[0, 3]], *arguments[1:]))


@pytest.mark.parametrize("width", [8, 24])  # others are filled up with zeros, which times infinity is none
@pytest.mark.parametrize("impl", BOTH)
def test_infinite_hidden_values(impl, width):
    arguments = inputs(points=2, width=width, channels=1, heads=1, dtype=torch.float32)
    x, weight1, bias1, weight2, bias2 = (each.detach() for each in arguments)
    x = torch.tensor([[1e20], [-1e20]], requires_grad=True)
    y = fused_mlp(x, torch.full_like(weight1, 1e20), bias1, weight2.abs(), bias2, impl=impl)
    assert y[0].isposinf() and y[1] == bias2[0, 0]
    # exp(-87), the smallest that there is, times the weights
    assert torch.autograd.grad(y[1].sum(), x)[0].abs().max() < 1e-15


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize(("heads", "outputs", "width"), [(3, 0, 4), (2, 1, 0)])
def test_nothing_to_compute(impl, heads, outputs, width):
    """No gradient, and no memory that nothing has been written to."""
    arguments = inputs(points=400, heads=heads, outputs=outputs, width=width)
    y = fused_mlp(*arguments, impl=impl)
    assert y.shape == (400, heads * outputs)
    torch.full((400, 3), 7.0, dtype=torch.float64)  # freed: what lies in memory is not zero
    gradients = torch.autograd.grad(y.sum(), arguments, allow_unused=True)
    assert gradients[0] is None or gradients[0].eq(0).all()


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("points", [0, 1, 11, 64, 300])
@pytest.mark.parametrize(("heads", "outputs"), [(1, 1), (5, 1), (1, 3), (2, 3)])
def test_derivatives_equal_the_equations(impl, points, heads, outputs, small_blocks):
    arguments = inputs(points, 7, heads, 3, outputs)
    found = derivatives(lambda *each: fused_mlp(*each, impl=impl), arguments)
    expected = derivatives(by_the_equations, arguments)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@settings(max_examples=25, deadline=None)
@given(
    points=st.integers(0, 600),
    channels=st.integers(1, 40),
    heads=st.integers(1, 4),
    width=st.integers(1, 40),
    outputs=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_any_shape_in_float32(points, channels, heads, width, outputs, seed):
    exact = inputs(points, channels, heads, width, outputs, seed=seed)
    rounded = [each.detach().float().requires_grad_() for each in exact]
    found = derivatives(lambda *each: fused_mlp(*each, impl="native"), rounded)
    if points:  # sums of up to 600 points in float32
        assert relative(found, derivatives(by_the_equations, exact)) < 1e-4
    assert [each.shape for each in found] == [each.shape for each in derivatives(by_the_equations, exact)]


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize(("heads", "outputs"), [(3, 1), (2, 2)])
def test_gradcheck(impl, heads, outputs, small_blocks):
    arguments = inputs(70, 2, heads, 3, outputs)

    def function(*each):
        return fused_mlp(*each, impl=impl)

    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 1), (1, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("way", ["kernel", "kernel, in pieces", "products"])
def test_losses_on_any_gradients(wanted, way, monkeypatch, small_blocks):
    """In pieces: there is room for 4 channels, of which x has 3, so the widened layer is computed in some. By
    products, as many heads are on a GPU: here in two blocks."""
    room = 4 if way == "kernel, in pieces" else inf
    monkeypatch.setitem(module.NATIVE_TYPES, "cpu", {torch.float64: (room, room)})
    monkeypatch.setattr(module, "_prefers_products", lambda *_: way == "products")
    arguments = inputs(70, 3, 2, 5, 3)

    def by_gradients(function):
        y = function(*arguments)
        cotangent = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        first = torch.autograd.grad(y, [arguments[i] for i in wanted], cotangent, create_graph=True)
        loss = sum(each.pow(3).sum() for each in first)
        return torch.autograd.grad(loss, arguments, materialize_grads=True)

    found = by_gradients(lambda *each: fused_mlp(*each, impl="native"))
    for a, b in zip(found, by_gradients(by_the_equations), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("products", [False, True])
def test_third_derivatives_are_refused(products, monkeypatch):
    monkeypatch.setattr(module, "_prefers_products", lambda *_: products)
    x, *weights = inputs(9)
    loss = fused_mlp(x, *weights, impl="native").pow(3).sum()
    for _ in range(2):
        loss = torch.autograd.grad(loss, x, create_graph=True)[0].pow(3).sum()
    with pytest.raises(NotImplementedError, match="fused_mlp.* is not differentiable"):
        loss.backward()


@pytest.mark.parametrize("impl", BOTH)
def test_frozen_weights_still_pass_the_gradient_on(impl, small_blocks):
    x, *parameters = inputs(100)
    frozen = [each.detach() for each in parameters]
    (found,) = torch.autograd.grad(fused_mlp(x, *frozen, impl=impl).sum(), x)
    (expected,) = torch.autograd.grad(by_the_equations(x, *parameters).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("heads", "outputs"), [(1, 1), (5, 1), (2, 3)])
def test_counted_products_hold_no_zeros(heads, outputs):
    """The training summary's and the benchmark's FLOPs are those that torch counts in the reference."""
    points, channels, width = 7, 3, 4
    arguments = inputs(points, channels, heads, width, outputs)
    with FlopCounterMode(display=False) as forward:
        y = fused_mlp(*arguments, impl="reference")
    assert forward.get_total_flops() == 2 * points * heads * width * (channels + outputs)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(y.sum(), arguments)
    again = 0 if heads == 1 else channels  # one head's hidden layer is stored
    assert backward.get_total_flops() == 2 * points * heads * width * (2 * channels + 2 * outputs + again)


def test_any_layout():
    x, weight1, bias1, weight2, bias2 = inputs(40, 6, 2, 4, 3)
    turned = [
        x.T.contiguous().T,
        weight1.mT.contiguous().mT,
        bias1.T.contiguous().T,
        weight2.mT.contiguous().mT,
    ]
    torch.testing.assert_close(
        fused_mlp(turned[0].view(5, 8, 6), *turned[1:], bias2, impl="native").flatten(0, 1),
        by_the_equations(x, weight1, bias1, weight2, bias2),
    )


def test_threads_do_not_change_the_result():
    arguments = inputs(20000, 8, 2, 8, dtype=torch.float32)
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(derivatives(lambda *each: fused_mlp(*each, impl="native"), arguments))
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_other_types_run_as_references():
    arguments = [each.detach().bfloat16() for each in inputs()]
    assert fused_mlp(*arguments, impl="native").dtype is torch.bfloat16


def test_operations_are_well_defined():
    arguments = inputs(9)
    detached = [each.detach() for each in arguments]
    grad, direction = torch.randn(9, 2, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    assert extension.use_native("fused_mlp", "native", torch.device("cpu"))
    ops = torch.ops.mate3d
    torch.library.opcheck(ops.fused_mlp, tuple(arguments))
    torch.library.opcheck(ops.fused_mlp_gradient, (grad.requires_grad_(), *arguments[:4], True))
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")  # tracing takes seconds
    detached = (direction, grad.detach(), *detached[:4])
    for weights in (True, False):
        torch.library.opcheck(ops.fused_mlp_second, (*detached, weights), test_utils=utils)
    torch.library.opcheck(ops.fused_mlp_gradient, (*detached[1:], False), test_utils=utils)


def test_compiles_whole():
    """Traced into one graph, forwards and backwards; the tracing is what is tested, not a code generator."""
    arguments = inputs(9)

    def function(*each):
        return fused_mlp(*each, impl="native")

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    found, expected = (
        torch.autograd.grad(each(*arguments).square().sum(), arguments) for each in (compiled, function)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# The kernels compute in float32 or better; half precision rounds what goes in and out of each derivative.
TOLERANCES = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-11}
KERNEL_SIZES = [  # points, channels, heads, width, outputs
    (0, 3, 2, 4, 1),
    (1, 1, 1, 1, 1),
    (3001, 24, 3, 20, 1),  # points and hidden units that fill no block
    (4097, 32, 19, 16, 1),
    (3500, 32, 2, 33, 9),
    (3001, 63, 2, 17, 32),  # as much as the kernels have room for
]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", KERNEL_SIZES)
@pytest.mark.parametrize("turned", [False, True])
def test_kernel_equals_the_equations(dtype, sizes, turned, monkeypatch):
    need_kernels("fused_mlp")
    monkeypatch.delattr(module, "_Blockwise")  # the reference must not run
    compare_kernel(dtype, sizes, turned, "cuda")


def compare_kernel(dtype, sizes, turned, device):
    points, channels, heads, width, outputs = sizes
    if dtype is torch.float64:
        channels, outputs = min(channels, 31), min(outputs, 16)
    drawn = inputs(points, channels, heads, width, outputs)
    # small outputs: sums over all points stay within half precision
    scales = (1, channels**-0.5, 1, (width * heads * outputs) ** -0.5, 1)
    given = [(each.detach() * scale).to(device, dtype) for each, scale in zip(drawn, scales, strict=True)]
    if turned:
        given = [each.mT.contiguous().mT for each in given]
    exact = [each.double().cpu().requires_grad_() for each in given]
    given = [each.requires_grad_() for each in given]
    found = derivatives(lambda *each: fused_mlp(*each, impl="native"), given)
    assert_near([each.cpu() for each in found], derivatives(by_the_equations, exact), TOLERANCES[dtype])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_with_frozen_weights(dtype):
    need_kernels("fused_mlp")
    x, *parameters = inputs(3001, 24, 3, 20, dtype=dtype)
    moved = x.detach().cuda().requires_grad_()
    y = fused_mlp(moved, *(each.detach().cuda() for each in parameters), impl="native")
    (found,) = torch.autograd.grad(y.square().sum(), moved)
    exact = [each.detach().double().requires_grad_() for each in (x, *parameters)]
    (expected,) = torch.autograd.grad(by_the_equations(*exact).square().sum(), exact[0])
    assert_near([found.cpu()], [expected], TOLERANCES[dtype])


@pytest.mark.cuda
@pytest.mark.parametrize("outputs", [1, 3])
def test_kernel_of_losses_on_the_weights_gradients(outputs):
    """A direction of the weights widens the layer: of 31 channels, one more fits at a time."""
    need_kernels("fused_mlp")
    arguments = inputs(500, 31, 2, 5, outputs)

    def by_gradients(function, arguments):
        y = function(*arguments)
        first = torch.autograd.grad(y.square().sum(), arguments, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), arguments)

    moved = [each.detach().cuda().requires_grad_() for each in arguments]
    found = by_gradients(lambda *each: fused_mlp(*each, impl="native"), moved)
    expected = by_gradients(by_the_equations, arguments)
    assert_near([each.cpu() for each in found], expected, 1e-11)
