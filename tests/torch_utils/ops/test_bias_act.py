"""bias_act: values against the published activations, derivatives against finite differences."""

from __future__ import annotations

import warnings

import hypothesis
import pytest
import torch
from hypothesis import strategies

from tests.kernels import assert_near, need_kernels
from torch_utils import extension
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_values_equal_the_published_ones(parity, act):
    fixture = {key: torch.from_numpy(value) for key, value in parity("bias_act").items()}
    y = bias_act(fixture["x"], fixture["b"], act=act)
    torch.testing.assert_close(y, fixture[f"y_{act}"], rtol=0, atol=1e-10)


def test_alpha_gain_and_clamp_equal_the_published_ones(parity):
    fixture = {key: torch.from_numpy(value) for key, value in parity("bias_act").items()}
    y = bias_act(fixture["x"], fixture["b"], act="lrelu", alpha=0.1, gain=1.7, clamp=0.9)
    torch.testing.assert_close(y, fixture["y_lrelu_gain_clamp"], rtol=0, atol=1e-10)


def test_by_hand():
    x = torch.tensor([[1.0, -2.0]])
    y = bias_act(x, torch.tensor([1.0, 1.0]), act="lrelu", alpha=0.5, gain=3.0, clamp=5.0)
    assert y.tolist() == [[5.0, -1.5]]  # 3 * 2 clamped; 3 * 0.5 * -1


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 0.7])
def test_derivatives(act, clamp):
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64)
    x, bias = away_from_kinks(x, bias, act, clamp)

    def function(x, bias):
        return bias_act(x, bias, act=act, gain=1.3, clamp=clamp)

    torch.autograd.gradcheck(function, (x, bias))
    torch.autograd.gradgradcheck(function, (x, bias))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_bias_lies_along_dim(dim):
    x = torch.zeros(2, 3, 4)
    bias = torch.arange(x.shape[dim], dtype=torch.float32)
    assert torch.equal(bias_act(x, bias, dim=dim).movedim(dim, -1)[0, 0], bias)


def test_input_is_left_as_it_is():
    x = torch.randn(2, 3)
    before = x.clone()
    bias_act(x, torch.ones(3), act="lrelu", clamp=0.1)
    bias_act(x, act="relu", gain=1.0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("impl", ["auto", "reference", "native"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("act", ["linear", "lrelu", "tanh"])
def test_what_nobody_needs_any_more_may_be_overwritten(impl, layout, act):
    x, bias = torch.randn(2, 3, 40, 40).contiguous(memory_format=layout), torch.randn(3)
    # dense; with gaps, which the native operation copies; and nothing to write to
    for each in (x.clone(), x[..., ::2], x[:1, :, :1, :1].expand_as(x)):
        dense = each.shape == x.shape and each.stride() == x.stride()
        expected = bias_act(each, bias, act=act, gain=1, impl="reference")
        y = bias_act(each, bias, act=act, gain=1, overwrite=True, impl=impl)
        torch.testing.assert_close(y, expected)
        if dense and impl == "native" and "cpu" in extension.loaded("bias_act"):
            assert y.data_ptr() == each.data_ptr()


@pytest.mark.parametrize("impl", ["auto", "native"])
def test_only_what_an_operation_has_made_is_overwritten_where_there_are_gradients(impl):
    bias = torch.randn(3, requires_grad=True)
    leaf = torch.randn(2, 3, 160, 160, requires_grad=True)
    for x in (torch.randn(2, 3, 160, 160), leaf, (leaf * 1)[:, :, 40:]):
        before = x.detach().clone()
        y = bias_act(x, bias, act="lrelu", overwrite=True, impl=impl)
        y.sum().backward()
        assert torch.equal(x, before)


@pytest.mark.parametrize("impl", ["auto", "reference", "native"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("act", ["linear", "lrelu", "tanh"])
@pytest.mark.parametrize("clamp", [None, 0.7])
def test_overwriting_keeps_both_derivatives(impl, layout, act, clamp):
    shape = (2, 3, 160, 160)  # so large that 'auto' is native
    x, bias = torch.randn(shape, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    cotangents = torch.randn_like(x), torch.randn_like(x)
    made = []

    def made_of(x):
        made.append((x * 1).contiguous(memory_format=layout))
        return made[-1]

    settings = dict(act=act, gain=1.0, clamp=clamp)
    found = to_second_order(x, bias, cotangents, made_of, overwrite=True, impl=impl, **settings)
    expected = to_second_order(x, bias, cotangents, impl="reference", **settings)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-9)  # sums of 51200 numbers for the bias
    # the slope of tanh cannot be read off its clamped value
    if "cpu" in extension.loaded("bias_act"):
        assert torch.equal(made[0], found[0]) == (act != "tanh" and impl != "reference")


def test_overwriting_what_a_gradient_needs_is_refused():
    for impl in ("auto", "native"):
        x = torch.randn(2, 3, 160, 160, requires_grad=True)
        y = bias_act(x.exp(), torch.zeros(3), act="lrelu", overwrite=True, impl=impl)
        if "cpu" in extension.loaded("bias_act"):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()


def test_half_precision_keeps_its_type():
    y = bias_act(torch.randn(2, 3, dtype=torch.float16), torch.randn(3), act="lrelu")
    assert y.dtype == torch.float16


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_undefined_numbers_keep_their_gradient(impl):
    """Where a NaN goes through, its gradient does too: it must not look as if nothing had happened."""
    x = torch.tensor([torch.nan, -1.0, 1.0], requires_grad=True)
    y = bias_act(x, act="relu", dim=0, gain=3.0, impl=impl)
    assert y[0].isnan()
    y.sum().backward()
    assert x.grad.tolist() == [3, 0, 3]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="lrelu"):
        bias_act(torch.zeros(1, 1), act="leaky")
    with pytest.raises(ValueError, match="reference"):
        bias_act(torch.zeros(1, 1), impl="ref")
    with pytest.raises(ValueError, match="clamp is -1"):
        bias_act(torch.zeros(1, 1), clamp=-1)
    for dim in (2, -3):
        with pytest.raises(IndexError, match="2 dimensions"):
            bias_act(torch.zeros(1, 1), torch.zeros(1), dim=dim)


def away_from_kinks(x, bias, act, clamp, margin=1e-3):
    """The same inputs, moved so that finite differences do not step over a kink of activation or clamp."""
    shift = 0.0
    while True:
        inner = x + shift + bias[:, None]
        result = ACTIVATIONS[act].apply(inner, ACTIVATIONS[act].alpha) * 1.3
        near = inner.abs().min() < margin or (
            clamp is not None and (result.abs() - clamp).abs().min() < margin
        )
        if not near:
            return (x + shift).requires_grad_(), bias.requires_grad_()
        shift += margin


@pytest.fixture(scope="module")
def native():
    """Builds the native operations, or skips and says why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kinds = extension.loaded("bias_act")
    if "cpu" not in kinds:
        pytest.skip(str(caught[-1].message) if caught else "native operations are not available")


@pytest.mark.timeout(800)  # the first of these tests may have to build: seconds on an idle machine
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("form", ["contiguous", "channels_last", "last_dim", "no_bias", "strided"])
def test_native_equals_reference(native, act, clamp, form):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    if form == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif form == "strided":
        x = torch.randn(2, 3, 4, 10, dtype=torch.float64)[..., ::2]
    dim = -1 if form == "last_dim" else 1
    bias = None if form == "no_bias" else torch.randn(x.shape[dim], dtype=torch.float64)
    cotangents = torch.randn_like(x), torch.randn_like(x)
    found, expected = (
        to_second_order(x, bias, cotangents, dim=dim, act=act, gain=1.3, clamp=clamp, impl=impl)
        for impl in ("native", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)  # the same formula, other roundings


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_native_single_precision_and_extremes(native, act):
    x = torch.tensor([[-1e30, -100.0, -1e-6, 0.0, 1e-6, 25.0, 100.0, torch.nan, torch.inf]])
    found = bias_act(x, torch.zeros(9), act=act, impl="native")
    torch.testing.assert_close(
        found, bias_act(x, torch.zeros(9), act=act), rtol=2e-6, atol=2e-6, equal_nan=True
    )


@hypothesis.given(
    shape=strategies.lists(strategies.integers(0, 5), min_size=1, max_size=4),
    order=strategies.randoms(use_true_random=False),
    act=strategies.sampled_from(list(ACTIVATIONS)),
    clamp=strategies.sampled_from([None, 0.5]),
    with_bias=strategies.booleans(),
)
@hypothesis.settings(max_examples=40)
def test_native_takes_any_shape_and_layout(native, shape, order, act, clamp, with_bias):
    axes = list(range(len(shape)))
    order.shuffle(axes)
    dim = order.choice(axes)
    x = torch.randn([shape[i] for i in axes], dtype=torch.float64).permute(
        [axes.index(i) for i in range(len(axes))]
    )
    bias = torch.randn(shape[dim], dtype=torch.float64) if with_bias else None
    cotangents = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    found, expected = (
        to_second_order(x, bias, cotangents, dim=dim, act=act, clamp=clamp, impl=i)
        for i in ("native", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_native_sums_large_pictures_for_the_bias(native, layout):
    # several pieces to a row, and several blocks of pixels
    x = torch.randn(2, 3, 150, 150).to(memory_format=layout)
    bias = torch.randn(3)
    cotangents = torch.rand_like(x), torch.randn_like(x)
    found, expected = (
        to_second_order(
            x.to(dtype), bias.to(dtype), [c.to(dtype) for c in cotangents], act="swish", impl=impl
        )
        for impl, dtype in (("native", torch.float32), ("reference", torch.float64))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)  # single against double


@pytest.mark.parametrize("act", ["lrelu", "softplus"])
def test_native_derivatives(native, act):
    x, bias = away_from_kinks(torch.randn(2, 3, 4).double(), torch.randn(3).double(), act, 0.7)

    def function(x, bias):
        return bias_act(x, bias, act=act, gain=1.3, clamp=0.7, impl="native")

    torch.autograd.gradcheck(function, (x, bias))
    torch.autograd.gradgradcheck(function, (x, bias))


@pytest.mark.parametrize(("act", "wanted"), [("lrelu", 3), ("tanh", 1)])
def test_native_is_a_good_citizen_of_torch(native, act, wanted):
    number = list(ACTIVATIONS).index(act)
    x, bias = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    factor = torch.randn(2, 3, 4, requires_grad=True)
    ops = torch.ops.mate3d
    torch.library.opcheck(ops.bias_act.default, (x, bias, 1, number, 0.2, 1.4, 0.9))
    # gaps in memory and overlaps: the result has x's order of dimensions, and none of them
    channels = torch.randn(2, 6, 4, 5).contiguous(memory_format=torch.channels_last)[:, :3]
    for gaps in (channels, torch.randn(2, 3, 4)[..., ::2], torch.randn(2, 3, 1).expand(2, 3, 4)):
        settings = (1, number, 0.2, 1.4, 0.9)
        torch.library.opcheck(ops.bias_act.default, (gaps.detach().requires_grad_(), bias, *settings))
        assert ops.bias_act(gaps, bias, *settings).stride() == torch.empty_like(gaps).stride()
    torch.library.opcheck(ops.bias_act_.default, (x.detach(), bias.detach(), 1, number, 0.2, 1.4, 0.9))
    for spread in (None, torch.randn(3, requires_grad=True)):
        for summed in (False, True):
            arguments = (factor, spread, x, bias, 1, number, wanted, 0.2, 1.4, None, summed)
            torch.library.opcheck(ops.bias_act_gradient.default, arguments)


@pytest.mark.parametrize(("act", "wanted"), [("lrelu", 1), ("tanh", 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_native_gradient_adds_a_number_per_channel_to_its_factor(native, act, wanted, layout):
    number = list(ACTIVATIONS).index(act)
    x = torch.randn(2, 3, 4, 5).double().contiguous(memory_format=layout).requires_grad_()
    factor, spread, bias = torch.randn_like(x), torch.randn(3).double(), torch.randn(3).double()

    def function(factor, spread, x, bias):
        arguments = (x, bias, 1, number, wanted, 0.2, 1.4, 2.0, True)
        return torch.ops.mate3d.bias_act_gradient(factor, spread, *arguments)

    inputs = [each.detach().requires_grad_() for each in (factor, spread, x, bias)]
    for one, other in zip(
        function(*inputs), function(factor + spread[:, None, None], None, x, bias), strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.autograd.gradcheck(function, inputs)


def test_native_is_compiled_as_one_graph(native):
    x, bias = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3)

    def function(x, impl):
        return bias_act(x * 2, bias, act="lrelu", impl=impl)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    y, expected = compiled(x, "native"), function(x, "reference")
    torch.testing.assert_close(y, expected)
    found, wanted = (torch.autograd.grad(value.square().sum(), x) for value in (y, expected))
    torch.testing.assert_close(found, wanted)


def test_native_third_derivative_is_refused(native):
    x = torch.randn(3, requires_grad=True)
    y = bias_act(x, act="tanh", dim=0, impl="native")
    for _ in range(2):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable twice"):
        torch.autograd.grad(y.sum(), x)


def test_native_refuses_a_bias_that_does_not_fit(native):
    with pytest.raises(RuntimeError, match="does not fit"):
        bias_act(torch.zeros(2, 3), torch.zeros(4), impl="native")


# Several units in the last place: every type is computed in float32 or better and rounded at the end.
TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 1e-5, torch.float64: 1e-12}


def on_cuda(shape, dtype, form="contiguous", dim=1):
    """Inputs and cotangents on the GPU, the same in every run."""
    x = torch.randn(*shape[:-1], shape[-1] * (2 if form == "strided" else 1)).to("cuda", dtype)
    x = x[..., ::2] if form == "strided" else x
    x = x.to(memory_format=torch.channels_last) if form == "channels_last" else x
    bias = None if form == "no_bias" else torch.randn(shape[dim]).to("cuda", dtype)
    # half-precision numbers often cancel exactly, and there lies the kink of some activations
    moved = x if bias is None else x + bias.view([-1 if i == dim % 4 else 1 for i in range(4)])
    return x.masked_fill_(moved == 0, 1), bias, (torch.randn_like(x), torch.randn_like(x))


def compare_on_cuda(x, bias, cotangents, **arguments):
    found = to_second_order(x, bias, cotangents, impl="native", **arguments)
    wide = [each if each is None else each.double() for each in (x, bias, *cotangents)]
    expected = to_second_order(wide[0], wide[1], wide[2:], impl="reference", **arguments)
    assert_near(found, expected, TOLERANCES[x.dtype])


@pytest.mark.cuda
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("form", ["contiguous", "channels_last", "last_dim", "no_bias", "strided"])
def test_kernel_equals_reference(act, dtype, form):
    need_kernels("bias_act")
    dim = -1 if form == "last_dim" else 1
    for shape in ((2, 3, 4, 5), (1, 1, 1, 1), (2, 3, 0, 5), (2, 6, 70, 51)):  # the last in 168 blocks
        compare_on_cuda(*on_cuda(shape, dtype, form, dim), act=act, dim=dim, gain=1.3)


@pytest.mark.cuda
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
def test_kernel_with_more_elements_than_threads(form):
    need_kernels("bias_act")
    # 65536 blocks of 256 threads are the most: this takes every one of them twice
    compare_on_cuda(*on_cuda((2, 40, 512, 513), torch.float32, form), act="lrelu")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("channels", [6, 16])  # in whole vectors, and not
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
def test_kernel_where_no_vector_begins(form, channels, dtype):
    need_kernels("bias_act")
    for first in (0, 1):
        x = torch.randn(2 * channels * 33 * 34 + first).to("cuda", dtype)[first:].view(2, channels, 33, 34)
        if form == "channels_last":
            x = x.view(2, 33, 34, channels).permute(0, 3, 1, 2)
        bias = torch.randn(channels + first).to("cuda", dtype)[first:]
        expected = bias_act(x.double(), bias.double(), act="swish", impl="reference")
        assert_near([bias_act(x, bias, act="swish", impl="native")], [expected], TOLERANCES[dtype])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("act", ["relu", "lrelu", "swish"])
def test_kernel_knows_what_it_clamped(act, dtype):
    """0.9 is no number of half precision: what was clamped is not 0.9, but that rounded."""
    need_kernels("bias_act")
    x = torch.tensor([[-8.0, -2.0, -0.5, 0.25, 0.5, 2.0, 8.0]], device="cuda", dtype=dtype)
    bias = torch.zeros(7, device="cuda", dtype=dtype)
    compare_on_cuda(x, bias, (torch.ones_like(x), torch.ones_like(x)), act=act, gain=1.0, clamp=0.9)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("form", ["contiguous", "channels_last", "strided"])
def test_kernel_in_place(dtype, form):
    need_kernels("bias_act")
    x, bias, _ = on_cuda((2, 6, 70, 51), dtype, form)
    expected = bias_act(x.double(), bias.double(), act="lrelu", clamp=1.5, impl="reference")
    before = x.data_ptr()
    y = bias_act(x, bias, act="lrelu", clamp=1.5, overwrite=True, impl="native")
    assert (y.data_ptr() == before) == (form != "strided")
    assert_near([y], [expected], TOLERANCES[dtype])


def to_second_order(x, bias, cotangents, made_of=lambda x: x, **arguments):
    """Value, gradients, and gradients of the gradient by x under random cotangents; of ``made_of(x)``."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, bias) if tensor is not None]
    first, second = cotangents
    first = first.clone().requires_grad_()
    y = bias_act(made_of(leaves[0]), *leaves[1:], **arguments)
    gradients = torch.autograd.grad(y, leaves, first, create_graph=True)
    twice = torch.autograd.grad(gradients[0], [first, *leaves], second, allow_unused=True)
    twice = [x.new_zeros(1) if g is None or not g.any() else g for g in twice]
    return [y.detach(), *(g.detach() for g in gradients), *twice]
