"""march_rays: weights against the published marcher and by hand; the native one against its reference."""

from __future__ import annotations

import functools
import math
import warnings

import hypothesis
import pytest
import torch
from hypothesis import strategies

from tests.kernels import assert_near, need_kernels
from torch_utils import extension
from torch_utils.ops import march_rays as module
from torch_utils.ops.march_rays import (
    composite,
    expected_depth,
    interval_weights,
    march_rays,
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


def test_depth_of_next_to_nothing_has_no_infinite_gradient():
    weights = torch.tensor([[1e-39, 0.0], [2e-38, 0.0]], requires_grad=True)  # of which the first is denormal
    depth = expected_depth(torch.tensor([[2.0, 3.0]]).expand(2, 2), weights)
    assert depth.tolist() == [torch.inf, pytest.approx(2)]
    (gradient,) = torch.autograd.grad(depth, weights, torch.ones(2))
    assert gradient.isfinite().all()


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


@pytest.fixture(scope="module")
def native():
    """Builds the native operation, or skips and says why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kinds = extension.loaded("march_rays")
    if "cpu" not in kinds:
        pytest.skip(str(caught[-1].message) if caught else "native march_rays is not available")


def rays(rays=3, samples=7, features=4, parts=3, normals=True, dtype=torch.float64, device="cpu"):
    """Leaves and their depths: half of the samples sorted, the others anywhere, as the renderer has them."""
    draw = dict(dtype=dtype, device=device)
    depth = (
        torch.rand(*rays, samples, **draw) if isinstance(rays, tuple) else torch.rand(rays, samples, **draw)
    )
    coarse = samples // 2 + 1
    depth[..., :coarse] = depth[..., :coarse].sort(-1)[0]
    shape = depth.shape
    leaves = [torch.randn(shape, **draw) * 4, torch.randn(*shape, features, **draw)]
    leaves.append(torch.randn(*shape, parts, **draw) / 10 if parts else None)
    leaves.append(torch.randn(*shape, 3, **draw) if normals else None)
    return depth, [None if x is None else x.requires_grad_() for x in leaves]


def flat(marched):
    found = [marched.values, marched.depth, marched.weight, marched.mask, marched.normals]
    return [x for x in found if x is not None]


def with_gradients(depth, leaves, impl, **arguments):
    """What is marched, and its gradient under cotangents that both implementations share."""
    density, *values = leaves
    marched = flat(march_rays(density, depth, *values, impl=impl, **arguments))
    torch.manual_seed(1)
    met = [x.nan_to_num(posinf=0.0) for x in marched]  # a ray without a sample's weight has no depth
    loss = sum((x * torch.randn(x.shape, dtype=torch.float64).to(x)).sum() for x in met)
    given = [x for x in leaves if x is not None]
    return marched + list(torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True))


@pytest.mark.timeout(800)  # the first of these tests may have to build: seconds on an idle machine
@hypothesis.given(
    number=strategies.tuples(strategies.integers(0, 3), strategies.integers(1, 4)),
    samples=strategies.integers(1, 40),
    features=strategies.integers(1, 33),
    parts=strategies.integers(0, 20),
    normals=strategies.booleans(),
    marching=strategies.sampled_from(["published", "sigma"]),
    strided=strategies.booleans(),
)
@hypothesis.settings(max_examples=60)
def test_native_equals_reference(native, number, samples, features, parts, normals, marching, strided):
    depth, leaves = rays(number, samples, features, parts, normals)
    if strided:
        depth = depth.transpose(0, 1).contiguous().transpose(0, 1)
        leaves = [None if x is None else x.detach().mT.contiguous().mT.requires_grad_() for x in leaves]
    found, expected = (
        with_gradients(depth, leaves, impl, marching=marching) for impl in ("native", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("marching", ["published", "sigma"])
def test_native_single_precision(native, marching):
    depth, leaves = rays(50, 96, 32, 19, dtype=torch.float32)
    found = with_gradients(depth, leaves, "native", marching=marching)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = with_gradients(depth.double(), exact, "reference", marching=marching)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)  # sums of 96 terms of about 1


def test_native_agrees_with_the_published_marcher(native, parity):
    arrays = {name: torch.as_tensor(value) for name, value in parity("marcher").items()}
    density, depth = arrays["densities"].squeeze(-1), arrays["depths"].squeeze(-1)
    found = march_rays(density, depth, arrays["colors"], marching="published", impl="native")
    torch.testing.assert_close(found.values * 2 - 1, arrays["rgb"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.depth, arrays["depth"].squeeze(-1), atol=1e-4, rtol=1e-4)


def test_native_rays_that_meet_nothing(native):
    density, depth = torch.zeros(2, 4, requires_grad=True), torch.linspace(1, 2, 4).expand(2, 4)
    found = march_rays(density, depth, torch.ones(2, 4, 1), marching="sigma", impl="native")
    assert torch.isinf(found.depth).all() and torch.equal(found.weight, torch.zeros(2))
    found.depth.clamp(max=2.0).sum().backward()
    assert torch.equal(density.grad, torch.zeros(2, 4))


def test_native_opaque_rays(native):
    depth = torch.linspace(0, 1, 8).expand(2, 8)
    density = torch.tensor([1e4, 1e30]).unsqueeze(1).expand(2, 8).clone().requires_grad_()
    found = march_rays(density, depth, torch.ones(2, 8, 1), marching="published", impl="native")
    torch.testing.assert_close(found.weight, torch.ones(2))
    (gradient,) = torch.autograd.grad(found.values.sum(), density)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("marching", ["published", "sigma"])
@pytest.mark.parametrize("everything", [True, False])
def test_native_derivatives(native, marching, everything):
    depth, leaves = rays(2, 5, 2, 2 if everything else 0, everything)
    leaves[0] = leaves[0].detach().abs().requires_grad_()  # rays without weight have no depth to derive
    given = [x for x in leaves if x is not None]

    def function(*given):
        rest = given[2:] if everything else (None, None)
        marched = march_rays(
            given[0], depth, given[1], *rest, marching=marching, sharpness=3.0, impl="native"
        )
        return tuple(x for i, x in enumerate(flat(marched)) if i != 3 or not everything)

    def mask(part_sdf):  # its gradient stops at the weights, which finite differences cannot know
        return march_rays(
            leaves[0].detach(),
            depth,
            leaves[1].detach(),
            part_sdf,
            marching=marching,
            sharpness=3.0,
            impl="native",
        ).mask

    torch.autograd.gradcheck(function, given)
    torch.autograd.gradgradcheck(function, given)
    if everything:
        torch.autograd.gradcheck(mask, (leaves[2],))
        torch.autograd.gradgradcheck(mask, (leaves[2],))


def test_native_third_derivatives_are_refused(native):
    depth, (density, values, *_) = rays(2, 5)
    loss = march_rays(density, depth, values, marching="published", impl="native").values.pow(3).sum()
    for _ in range(2):
        loss = torch.autograd.grad(loss, density, create_graph=True)[0].pow(3).sum()
    with pytest.raises(NotImplementedError, match="march_rays is not differentiable a third time"):
        loss.backward()


@pytest.mark.parametrize(
    ("number", "features", "parts"), [(0, 4, 2), ((2, 0), 4, 2), (2, 0, 2), (2, 3, 0), ((), 0, 2)]
)
def test_native_without_rays_or_values(native, number, features, parts):
    check_without_rays_or_values(number, features, parts, "cpu")


def check_without_rays_or_values(number, features, parts, device):
    depth, leaves = rays(number, 5, features, 2, device=device)
    leaves[0] = leaves[0].detach().abs().requires_grad_()
    leaves[2] = leaves[2].detach()[..., :parts].requires_grad_()

    def derivatives(impl):
        marched = flat(march_rays(leaves[0], depth, *leaves[1:], marching="published", impl=impl))
        loss = sum(x.square().sum() for x in marched)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return *marched, *first, *torch.autograd.grad(sum(x.square().sum() for x in first), leaves)

    for one, other in zip(derivatives("native"), derivatives("reference"), strict=True):
        torch.testing.assert_close(one, other)


MIXED = [  # types of density, of depth and of what is at the samples
    (torch.float16, torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float64, torch.float64),
    (torch.float64, torch.float32, torch.float64),
    (torch.float16, torch.float32, torch.float32),
    (torch.float32, torch.bfloat16, torch.float32),
    (torch.float16, torch.bfloat16, torch.float32),
    (torch.float32, torch.float32, torch.float16),  # this and the next have no product in plain torch
    (torch.float64, torch.float32, torch.bfloat16),
]
# Gradients are rounded to the type of their input.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def of_types(types, device="cpu"):
    """As :func:`rays`, in these types; the depths are exact in each of them, hence distinct."""
    density, depth, others = types
    _, leaves = rays(40, 96, 33, 19)
    leaves[0] = leaves[0].abs()  # a sum of weights of both signs may be 0, which depth is divided by
    leaves = [x.detach().to(device, others if i else density).requires_grad_() for i, x in enumerate(leaves)]
    return (torch.rand(40, 96).argsort(-1) / 128).to(device, depth), leaves


def compare_types(types, device, impl, monkeypatch):
    depth, leaves = of_types(types, device)
    widest = functools.reduce(torch.promote_types, types)
    exact = [x.detach().double().cpu().requires_grad_() for x in leaves]
    expected = with_gradients(depth.double().cpu(), exact, "reference", marching="published")
    with monkeypatch.context() as patch:
        patch.delattr(module, "_reference")  # it must not run
        found = with_gradients(depth, leaves, impl, marching="published")
    assert [x.dtype for x in found] == [widest] * 5 + [x.dtype for x in leaves]
    for one, other in zip(found, expected, strict=True):
        # cotangents are rounded as well, to the widest type
        assert_near([one.cpu()], [other], max(TOLERANCES[one.dtype], TOLERANCES[widest]))


@pytest.mark.parametrize("types", MIXED)
@pytest.mark.parametrize("impl", ["auto", "native"])
def test_native_takes_the_widest_type(native, types, impl, monkeypatch):
    """Half precision too, as on a GPU: it is computed in float32, which CPUs can do as well."""
    monkeypatch.setitem(module.NATIVE_TYPES, "cpu", module.NATIVE_TYPES["cuda"])
    monkeypatch.setitem(extension.AUTO, "march_rays", {"cpu": 0})
    compare_types(types, "cpu", impl, monkeypatch)


@pytest.mark.parametrize("types", MIXED)
def test_reference_takes_the_widest_type(types):
    depth, leaves = of_types(types)
    found = flat(march_rays(leaves[0], depth, *leaves[1:], marching="sigma", impl="reference"))
    widest = functools.reduce(torch.promote_types, types)
    assert {x.dtype for x in found} == {widest}
    if torch.promote_types(*types[:2]) == types[2]:  # torch finds a type by itself
        plain = flat(module._reference(leaves[0], depth, *leaves[1:], "sigma", 20.0))
        assert {x.dtype for x in plain} == {widest}


@pytest.mark.parametrize("impl", ["auto", "native"])
def test_what_has_no_native_type_or_shape_takes_the_reference(native, impl, monkeypatch):
    monkeypatch.setitem(extension.AUTO, "march_rays", {"cpu": 0})
    depth, (density, values, *_) = rays()
    half = [x.detach().half() for x in (density, depth, values)]
    same_on_all_rays = density, depth, values[:1]
    for given in (half, same_on_all_rays):
        found, expected = (march_rays(*given, marching="sigma", impl=each) for each in (impl, "reference"))
        assert torch.equal(found.values, expected.values)


def test_native_second_derivatives_are_exact_under_autocast(native):
    depth, (density, values, *_) = rays(dtype=torch.float32)

    def second():
        y = march_rays(density, depth, values, marching="published", impl="native").values
        (first,) = torch.autograd.grad(y.square().sum(), density, create_graph=True)
        return torch.autograd.grad(first.square().sum(), density)[0]

    with torch.autocast("cpu", torch.bfloat16):
        found = second()
    torch.testing.assert_close(found, second())


def test_depths_that_need_a_gradient_take_the_reference(native):
    depth, leaves = rays()
    depth.requires_grad_()
    found = march_rays(leaves[0], depth, *leaves[1:], marching="sigma", impl="native")
    assert torch.autograd.grad(found.depth.sum(), depth)[0].any()


def test_native_is_a_good_citizen_of_torch(native):
    depth, (density, values, part_sdf, normals) = rays(dtype=torch.float32)
    torch.library.opcheck(
        torch.ops.mate3d.march_rays.default, (density, depth, values, part_sdf, normals, True, 20.0)
    )
    torch.library.opcheck(
        torch.ops.mate3d.march_rays.default, (density, depth, values, None, None, False, 20.0)
    )
    *marched, weights = torch.ops.mate3d.march_rays(density, depth, values, part_sdf, normals, True, 20.0)
    inputs = (density, depth, values, part_sdf, normals, weights.detach())
    cotangents = [torch.randn_like(x).requires_grad_() for x in marched]
    gradient = torch.ops.mate3d.march_rays_gradient.default
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")  # tracing takes seconds
    torch.library.opcheck(gradient, (*inputs, *cotangents, True, 20.0), test_utils=utils)
    inputs = (density, depth, values, None, None, weights.detach())
    torch.library.opcheck(gradient, (*inputs, cotangents[0], None, None, None, None, False, 20.0))


def test_native_is_compiled_as_one_graph(native):
    depth, (density, values, part_sdf, _) = rays(dtype=torch.float32)

    def function(density, impl):
        return march_rays(density * 2, depth, values, part_sdf, marching="sigma", impl=impl).values

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    y, expected = compiled(density, "native"), function(density, "reference")
    torch.testing.assert_close(y, expected)
    found, wanted = (torch.autograd.grad(value.square().sum(), density) for value in (y, expected))
    torch.testing.assert_close(found, wanted)


def with_undefined_depths(samples, device):
    """Three rays, of which the second has two depths that are not numbers."""
    depth, leaves = rays(3, samples, dtype=torch.float32)
    depth[1, [0, 3]] = torch.nan
    found = [
        with_gradients(
            depth.to(to), [x.detach().to(to).requires_grad_() for x in leaves], impl, marching="sigma"
        )
        for impl, to in (("native", device), ("reference", "cpu"))
    ]
    for one, other in zip(*found, strict=True):  # NaN in the same places, and nothing else that it reached
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("samples", [7, 300])  # sorted by counting; by comparing
def test_native_undefined_depths_come_last(native, samples):
    with_undefined_depths(samples, "cpu")


@pytest.mark.cuda
def test_kernel_undefined_depths_come_last():
    need_kernels("march_rays")
    with_undefined_depths(96, "cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("marching", ["published", "sigma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
# one sample; a usual ray; the most that a block's shared memory holds; more rays than 65536 blocks
@pytest.mark.parametrize(("number", "samples"), [(3, 1), (0, 8), (500, 96), (3, 1024), (70000, 4)])
@pytest.mark.parametrize("strided", [False, True])
def test_kernel_equals_reference(marching, dtype, number, samples, strided):
    need_kernels("march_rays")
    depth, leaves = rays(number, samples, 33, 19, dtype=dtype)
    leaves[0] = leaves[0].detach().abs()  # a sum of weights of both signs may be 0, which depth is divided by
    depth, leaves = depth.cuda(), [x.detach().cuda() for x in leaves]
    if strided:
        depth = depth.transpose(0, 1).contiguous().transpose(0, 1)
        leaves = [x.mT.contiguous().mT for x in leaves]
    leaves = [x.requires_grad_() for x in leaves]
    found = with_gradients(depth, leaves, "native", marching=marching)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = with_gradients(depth.double(), exact, "reference", marching=marching)
    # sums of up to 1024 terms, one after the other
    assert_near(found, expected, 1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.cuda
@pytest.mark.parametrize("types", MIXED)
@pytest.mark.parametrize("impl", ["auto", "native"])
def test_kernel_takes_the_widest_type(types, impl, monkeypatch):
    need_kernels("march_rays")
    compare_types(types, "cuda", impl, monkeypatch)


@pytest.mark.cuda
@pytest.mark.parametrize(("number", "features", "parts"), [(0, 4, 2), (2, 0, 2), (2, 3, 0)])
def test_kernel_without_rays_or_values(number, features, parts):
    need_kernels("march_rays")
    check_without_rays_or_values(number, features, parts, "cuda")


@pytest.mark.cuda
def test_kernel_refuses_what_it_has_no_room_for():
    need_kernels("march_rays")
    depth, (density, values, *_) = rays(2, 1025, device="cuda")
    with pytest.raises(RuntimeError, match="more than 1024 samples"):
        march_rays(density, depth, values, marching="sigma", impl="native")


@pytest.mark.cuda
def test_auto_takes_the_reference_where_the_kernel_has_no_room():
    depth, (density, values, *_) = rays(2, 1025, device="cuda")
    found = march_rays(density, depth, values, marching="sigma")
    expected = march_rays(density, depth, values, marching="sigma", impl="reference")
    assert torch.equal(found.values, expected.values)
