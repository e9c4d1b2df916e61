"""upfirdn2d: against the published operation, against its definition, and its derivatives."""

from __future__ import annotations

import warnings
from itertools import product

import hypothesis
import pytest
import torch
from hypothesis import strategies

from tests.kernels import assert_near, need_kernels
from tests.torch_utils.dispatched import Dispatched
from torch_utils import extension
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

ARGUMENTS = {
    "up2": ("f1", dict(up=2, padding=(2, 1, 2, 1), gain=4)),
    "down2": ("f1", dict(down=2, padding=(1, 1, 1, 1))),
    "asym": ("f2", dict(up=(3, 2), down=(2, 1), padding=(1, 2, 0, 3), flip_filter=True, gain=1.5)),
    "crop": ("f1", dict(padding=(-1, -1, 0, -2))),
}
CASES = list(
    product([(1, 1), (2, 2), (3, 1)], [(1, 1), (2, 2), (1, 3)], [(0, 0, 0, 0), (2, 1, 3, 0), (-1, 3, 0, -2)])
)

# Sums of nine to twenty-five products in float32 or better, and for the gradient twice; results are rounded.
TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_values_equal_the_published_ones(parity, name):
    fixture = {key: torch.from_numpy(value) for key, value in parity("upfirdn2d").items()}
    filter_name, arguments = ARGUMENTS[name]
    y = upfirdn2d(fixture["x"], fixture[filter_name], **arguments)
    torch.testing.assert_close(y, fixture[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("function", [upsample2d, downsample2d, filter2d])
def test_convenience_forms_equal_the_published_ones(parity, function):
    fixture = {key: torch.from_numpy(value) for key, value in parity("upfirdn2d").items()}
    y = function(fixture["x"], fixture["f1"])
    torch.testing.assert_close(y, fixture[function.__name__], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("up", "down", "padding"), CASES)
@pytest.mark.parametrize("flip", [False, True])
def test_definition(up, down, padding, flip):
    x, f = torch.randn(2, 2, 8, 7, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    y = upfirdn2d(x, f, up=up, down=down, padding=padding, flip_filter=flip, gain=1.5)
    expected = step_by_step(x, f if flip else f.flip((0, 1)), up, down, padding) * 1.5
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)  # sums of twelve float64 products


@pytest.mark.parametrize(("up", "down", "padding"), CASES[::2])
def test_derivatives(up, down, padding):
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    f = torch.randn(4, 3, dtype=torch.float64)

    def function(x):
        return upfirdn2d(x, f, up=up, down=down, padding=padding)

    torch.autograd.gradcheck(function, (x,))
    torch.autograd.gradgradcheck(function, (x,))


def test_constant_picture_stays_constant():
    x, f = torch.ones(1, 1, 8, 8), setup_filter((1, 3, 3, 1))
    for function in (upsample2d, downsample2d, filter2d):
        inner = function(x, f)[..., 2:-2, 2:-2]
        torch.testing.assert_close(inner, torch.ones_like(inner))


def test_up_then_down_keeps_a_ramp():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    f = setup_filter((1, 3, 3, 1))
    back = downsample2d(upsample2d(ramp, f), f)  # no shift: both are centred
    torch.testing.assert_close(back[..., 3:-3, 3:-3], ramp[..., 3:-3, 3:-3])


def test_setup_filter():
    f = setup_filter((1, 3, 3, 1))
    assert f.shape == (4, 4) and f.dtype == torch.float32
    assert f.sum() == 1 and f[0, 0] == 1 / 64 and f[1, 1] == 9 / 64
    torch.testing.assert_close(
        setup_filter([[1.0, 2.0]], normalize=False, gain=2), torch.tensor([[2.0, 4.0]])
    )
    with pytest.raises(ValueError, match="dimensions"):
        setup_filter(torch.zeros(1, 1, 1))


def test_vector_and_absent_filters():
    x = torch.randn(1, 2, 5, 5)
    taps = torch.tensor([1.0, 2.0, 1.0])
    assert torch.equal(upfirdn2d(x, taps, padding=1), upfirdn2d(x, taps.outer(taps), padding=1))
    assert torch.equal(upfirdn2d(x, None), x)


@pytest.fixture(scope="module")
def native():
    """Builds the native operation, or skips and says why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kinds = extension.loaded("upfirdn2d")
    if "cpu" not in kinds:
        pytest.skip(str(caught[-1].message) if caught else "native upfirdn2d is not available")


@pytest.mark.timeout(800)  # the first of these tests may have to build: seconds on an idle machine
@pytest.mark.parametrize("name", ARGUMENTS)
def test_native_values_equal_the_published_ones(native, parity, name):
    fixture = {key: torch.from_numpy(value) for key, value in parity("upfirdn2d").items()}
    filter_name, arguments = ARGUMENTS[name]
    y = upfirdn2d(fixture["x"], fixture[filter_name], **arguments, impl="native")
    torch.testing.assert_close(y, fixture[name], rtol=0, atol=1e-10)


@hypothesis.given(
    size=strategies.tuples(*[strategies.integers(0, 3)] * 2, *[strategies.integers(1, 9)] * 2),
    filter_size=strategies.tuples(*[strategies.integers(1, 9)] * 2),
    up=strategies.tuples(*[strategies.integers(1, 3)] * 2),
    down=strategies.tuples(*[strategies.integers(1, 3)] * 2),
    padding=strategies.tuples(*[strategies.integers(-3, 5)] * 4),
    separable=strategies.booleans(),
    layout=strategies.sampled_from(["contiguous", "channels_last", "strided"]),
    flip=strategies.booleans(),
    gain=strategies.sampled_from([1, 4, -0.7]),
)
@hypothesis.settings(max_examples=120)
def test_native_takes_any_steps_and_layout(
    native, size, filter_size, up, down, padding, separable, layout, flip, gain
):
    f = torch.randn(filter_size, dtype=torch.float64)
    if separable:
        f = f[:, 0].outer(f[0])
    x = torch.randn(*size[:3], 2 * size[3], dtype=torch.float64)
    x = x[..., ::2] if layout == "strided" else x[..., : size[3]].contiguous()
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    left, right, top, bottom = padding
    hypothesis.assume(size[3] * up[0] + left + right >= filter_size[1])
    hypothesis.assume(size[2] * up[1] + top + bottom >= filter_size[0])
    # the definition below cannot crop more than there is
    hypothesis.assume(size[3] * up[0] + min(left, 0) + min(right, 0) >= 0)
    hypothesis.assume(size[2] * up[1] + min(top, 0) + min(bottom, 0) >= 0)
    arguments = dict(up=up, down=down, padding=padding, flip_filter=flip, gain=gain)
    found = both(x, f, "native", arguments)
    wide = x.detach().requires_grad_()
    expected = step_by_step(wide, gain * (f if flip else f.flip((0, 1))), up, down, padding)
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(expected.square().sum(), wide)
    torch.testing.assert_close(found[1], gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("function", [upsample2d, downsample2d, filter2d])
def test_native_equals_reference_on_pictures(native, function, layout):
    # several strips and every vector width; channels-last keeps its layout
    f = setup_filter((1, 3, 3, 1))
    x = torch.randn(1, 37, 70, 150).to(memory_format=layout)
    found, expected = (function(x, f, impl=impl) for impl in ("native", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # sums of 16 products in another order
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), ((1, 1), (1, 2)), ((2, 1), (1, 2)), (3, 2)])
@pytest.mark.parametrize("padding", [(2, 1, 2, 1), (1, 2, 1, 2), (-1, 3, -2, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_rows_of_any_length(native, up, down, padding, layout, dtype):
    # from fewer pixels than the filter has, over rows that memory is asked for in advance (256 bytes to 16
    # KiB, of one channel or of all), to longer ones; even and odd
    arguments = dict(up=up, down=down, padding=padding)
    skewed = torch.randn(4, 3)
    for shape in ((1, 3, 5, 2), (2, 5, 61, 75), (1, 2, 34, 513), (1, 1, 7, 4099), (1, 48, 9, 90)):
        x = torch.randn(shape, dtype=dtype).to(memory_format=layout)
        for f in (setup_filter((1, 3, 3, 1)), setup_filter((1, 2, 4, 3, 1)), skewed):
            if shape[3] * (up if isinstance(up, int) else up[0]) + padding[0] + padding[1] < f.shape[1]:
                continue
            found = both(x, f, "native", arguments)
            assert_near(found, both(x.double(), f.double(), "reference", arguments), TOLERANCES[dtype])


@pytest.mark.parametrize(("up", "down", "padding"), CASES[::3])
@pytest.mark.parametrize("flip", [False, True])
def test_native_derivatives(native, up, down, padding, flip):
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    f = torch.randn(4, 3, dtype=torch.float64)

    def function(x):
        return upfirdn2d(x, f, up=up, down=down, padding=padding, flip_filter=flip, gain=1.5, impl="native")

    torch.autograd.gradcheck(function, (x,))
    torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("flip", [False, True])
def test_native_is_a_good_citizen_of_torch(native, layout, flip):
    x = torch.randn(2, 3, 6, 7).to(memory_format=layout).requires_grad_()
    arguments = (x, torch.randn(4, 3), [2, 1], [1, 2], [2, 1, 0, 1], flip, 1.5)
    torch.library.opcheck(torch.ops.mate3d.upfirdn2d.default, arguments)


def test_native_calls_nothing_but_the_operation(native):
    """A copy of the filter, turned round or multiplied, would take a GPU as long as a small picture does."""
    x, f = torch.randn(1, 2, 8, 8, requires_grad=True), setup_filter((1, 3, 3, 1))
    with Dispatched() as dispatched:
        y = upsample2d(x, f, impl="native")
        y.backward(y.detach(), inputs=[x])
    computing = [each for each in dispatched.operations if each != torch.ops.aten.detach.default]
    assert computing == [torch.ops.mate3d.upfirdn2d.default] * 2


def test_native_is_compiled_as_one_graph(native):
    x, f = torch.randn(1, 2, 8, 8, requires_grad=True), setup_filter((1, 3, 3, 1))

    def function(x, impl):
        return upsample2d(x * 2, f, impl=impl)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    y, expected = compiled(x, "native"), function(x, "reference")
    torch.testing.assert_close(y, expected)
    found, wanted = (torch.autograd.grad(value.square().sum(), x) for value in (y, expected))
    torch.testing.assert_close(found, wanted)


def test_native_keeps_taps_that_are_small_beside_others(native):
    """A millionth of the largest tap is no rounding: this filter is no product of two."""
    f = torch.tensor([[1.0, 0.0], [0.0, 5e-7]])
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 1, 1] = 1e6
    assert upfirdn2d(x, f, flip_filter=True, impl="native").item() == pytest.approx(0.5)


def test_native_refuses_a_filter_larger_than_the_picture(native):
    with pytest.raises(RuntimeError, match="4 taps for a picture of 3"):
        upfirdn2d(torch.zeros(1, 1, 3, 3), torch.ones(4, 4), impl="native")


def compare_on_cuda(x, f, arguments):
    f = f.to(
        torch.promote_types(x.dtype, f.dtype)
    )  # a filter's own type would round its product with the gain
    found = both(x, f, "native", arguments)
    assert_near(found, both(x.double(), f.double(), "reference", arguments), TOLERANCES[x.dtype])
    return found


@pytest.mark.cuda
@pytest.mark.parametrize(("up", "down", "padding"), CASES[::2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_kernel_equals_reference(up, down, padding, layout, dtype):
    need_kernels("upfirdn2d")
    f = torch.randn(4, 3).cuda()
    for shape in ((2, 3, 8, 7), (1, 1, 8, 7), (0, 3, 8, 7), (2, 5, 61, 75)):  # the last in many blocks
        x = torch.randn(*shape[:3], 2 * shape[3]).to("cuda", dtype)
        x = x[..., ::2] if layout == "strided" else x[..., : shape[3]].contiguous()
        x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
        for flip in (False, True):
            compare_on_cuda(x, f, dict(up=up, down=down, padding=padding, flip_filter=flip, gain=1.5))


@pytest.mark.cuda
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("padding", [(2, 1, 2, 1), (1, 2, 1, 2), (-1, 3, -2, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_kernel_of_four_taps(up, down, padding, layout, dtype):
    need_kernels("upfirdn2d")
    f = torch.randn(4, 4).cuda()
    numbers = torch.randn(2 * 3 * 40 * 41 + 1).to("cuda", dtype)
    shifted = numbers[1:].view(2, 3, 40, 41)  # no vector begins there
    # strips of two pixels; long ones, and rows that no warp ends with
    pictures = [
        torch.randn(shape).to("cuda", dtype).to(memory_format=layout)
        for shape in ((2, 3, 9, 7), (0, 3, 8, 7), (3, 33, 259, 247))
    ]
    for x, flip in product([*pictures, shifted], (False, True)):
        compare_on_cuda(x, f, dict(up=up, down=down, padding=padding, flip_filter=flip, gain=1.5))


@pytest.mark.cuda
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernel_with_more_pixels_than_threads(layout):
    need_kernels("upfirdn2d")
    # 65536 blocks of 256 threads are the most where a filter has no kernel of its own: each takes two shares
    x = torch.randn(1, 80, 512, 513).cuda().to(memory_format=layout)
    (y, _) = compare_on_cuda(x, setup_filter((1, 2, 1)).cuda(), dict(padding=1))
    assert y.is_contiguous(memory_format=layout)


def both(x, f, impl, arguments):
    """The value, and the gradient of its squares' sum."""
    x = x.detach().requires_grad_()
    y = upfirdn2d(x, f, **arguments, impl=impl)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return y.detach(), gradient


def step_by_step(x, correlate, up, down, padding):
    """Zeros inserted, padded, correlated pixel by pixel, every down-th pixel kept."""
    left, right, top, bottom = padding
    wide = x.new_zeros(*x.shape[:2], x.shape[2] * up[1], x.shape[3] * up[0])
    wide[:, :, :: up[1], :: up[0]] = x
    wide = torch.nn.functional.pad(wide, (left, right, top, bottom))
    fh, fw = correlate.shape
    windows = wide.unfold(2, fh, down[1]).unfold(3, fw, down[0])
    return (windows * correlate).sum((-1, -2))
