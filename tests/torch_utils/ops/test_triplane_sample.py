"""triplane_sample: against the published sampler, torch's bilinear sampling, and its derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.kernels import assert_near, need_kernels
from torch_utils import extension
from torch_utils.ops import triplane_sample as module
from torch_utils.ops.triplane_sample import (
    PROJECTIONS,
    channels_last,
    triplane_sample,
    triplane_sample_sets,
)

BOX = 1.4
BOTH = ("reference", "native")


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("which", ["texture", "shape"])
def test_values_equal_the_published_ones(parity, which, impl):
    fixture = {key: torch.from_numpy(value) for key, value in parity("triplane_decoder").items()}
    planes, points = fixture[f"planes_{which}"], fixture["xyz"]
    each = triplane_sample(planes, points, projection="published", box_warp=1.0, reduce="none", impl=impl)
    # float32 weights of four corners: a few units in the last place of values of about 3
    torch.testing.assert_close(each, fixture[f"features_{which}"], rtol=0, atol=2e-6)
    mean = triplane_sample(planes, points, projection="published", box_warp=1.0, impl=impl)
    torch.testing.assert_close(mean, each.mean(1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_equals_bilinear_sampling(projection, impl):
    planes, points = scene(channels=5, height=6, width=9, count=200)
    y = triplane_sample(planes, points, projection=projection, box_warp=BOX, impl=impl)
    torch.testing.assert_close(y, by_grid_sample(planes, points, projection), rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_gradients_equal_bilinear_sampling(projection, impl):
    planes, points = (tensor.requires_grad_() for tensor in scene(count=50))
    y = triplane_sample(planes, points, projection=projection, box_warp=BOX, impl=impl)
    cotangent = torch.randn_like(y)
    found = torch.autograd.grad(y, (planes, points), cotangent)
    expected = torch.autograd.grad(by_grid_sample(planes, points, projection), (planes, points), cotangent)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_derivatives(reduce, impl):
    planes, points = (tensor.requires_grad_() for tensor in scene(channels=2, height=3, width=2, count=4))

    def function(planes, points):
        return triplane_sample(
            planes, points, projection="orthogonal", box_warp=BOX, reduce=reduce, impl=impl
        )

    torch.autograd.gradcheck(function, (planes, points))
    torch.autograd.gradgradcheck(function, (planes, points))


@pytest.mark.parametrize("impl", BOTH)
def test_eikonal_gradient_by_finite_differences(impl):
    """The gradient by the planes of a loss on the gradient by the points, as training needs it."""
    planes, points = scene(count=8)

    def eikonal(planes):
        leaf = points.clone().requires_grad_()
        y = triplane_sample(planes, leaf, projection="orthogonal", box_warp=BOX, impl=impl).square().sum()
        slope = torch.autograd.grad(y, leaf, create_graph=True)[0]
        return (slope.norm(dim=-1) - 1).square().mean()

    torch.autograd.gradcheck(eikonal, (planes.requires_grad_(),))


@pytest.mark.parametrize("impl", BOTH)
def test_points_gradient_alone_does_not_pay_for_the_planes(monkeypatch, impl):
    planes, points = (tensor.requires_grad_() for tensor in scene(count=8))
    y = triplane_sample(planes, points, projection="orthogonal", box_warp=BOX, impl=impl)
    monkeypatch.setattr(module, "scatter", lambda *_: pytest.fail("the planes' gradient was computed"))
    torch.autograd.grad(y.sum(), points, create_graph=True)


@pytest.mark.parametrize("impl", BOTH)
def test_pixel_centres_by_hand(impl):
    # 2 x 2 pixels over a box of side 2: centres at -0.5 and 0.5; plane x-y only, the others are zero
    planes = torch.zeros(1, 3, 1, 2, 2)
    planes[0, 0, 0] = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    points = torch.tensor(
        [[[-0.5, -0.5, 0.9], [0.5, -0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 0.5, 0.0], [1.6, 0.0, 0.0]]]
    )
    y = triplane_sample(planes, points, projection="orthogonal", box_warp=2.0, impl=impl)
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


@pytest.mark.parametrize("impl", BOTH)
def test_far_and_undefined_points(impl, device="cpu"):
    planes = scene()[0].to(device)
    points = torch.tensor([[[1e9, 0.0, 0.0], [-1e30, 1e30, torch.inf], [torch.nan, 0.0, 0.0]]]).to(planes)
    y = triplane_sample(planes[:1], points, projection="orthogonal", box_warp=BOX, impl=impl)
    assert y[0, 0].isfinite().all()
    assert torch.equal(y[0, 1], torch.zeros_like(y[0, 1]))
    assert y[0, 2].isnan().all()  # visible, and no row out of range


@pytest.mark.parametrize("impl", BOTH)
@pytest.mark.parametrize(("reduce", "shape"), [("mean", (2, 0, 3)), ("none", (2, 3, 0, 3))])
def test_no_points(impl, reduce, shape):
    planes, points = (tensor.requires_grad_() for tensor in scene(count=0))
    y = triplane_sample(planes, points, projection="orthogonal", box_warp=BOX, reduce=reduce, impl=impl)
    assert y.shape == shape
    assert not any(grad.any() for grad in torch.autograd.grad(y.sum(), (planes, points)))


@pytest.mark.parametrize("impl", BOTH)
def test_no_scenes(impl):
    planes, points = (tensor[:0].requires_grad_() for tensor in scene())
    y = triplane_sample(planes, points, projection="orthogonal", box_warp=BOX, impl=impl)
    assert y.shape == (0, *points.shape[1:2], planes.shape[2])
    gradients = torch.autograd.grad(y.sum(), (planes, points))
    assert [each.shape for each in gradients] == [planes.shape, points.shape]


@settings(max_examples=25, deadline=None)
@given(
    scenes=st.integers(1, 3),
    count=st.integers(0, 40),
    channels=st.integers(1, 40),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    projection=st.sampled_from(sorted(PROJECTIONS)),
    reduce=st.sampled_from(["mean", "none"]),
    seed=st.integers(0, 99),
)
def test_native_equals_the_reference(scenes, count, channels, height, width, projection, reduce, seed):
    torch.manual_seed(seed)
    planes = torch.randn(scenes, 3, channels, height, width).requires_grad_()
    points = ((torch.rand(scenes, count, 3) - 0.5) * 1.5 * BOX).requires_grad_()
    found, expected = (
        derivatives(planes, points, projection=projection, box_warp=BOX, reduce=reduce, impl=impl)
        for impl in BOTH[::-1]
    )
    for a, b in zip(found, expected, strict=True):
        # both round to float32; pixels add up 40 points, and the slopes are divided by their lengths
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5 * b.abs().max().item() if b.numel() else 0)


def derivatives(planes, points, **options):
    """Value, gradients, and the gradients of a loss on the slopes."""
    y = triplane_sample(planes, points, **options)
    cotangent = ((torch.arange(y.numel()) % 17 - 7) / 8).view_as(y).to(y)  # the same in every precision
    first = torch.autograd.grad(y, (planes, points), cotangent, create_graph=True)
    slope = torch.autograd.grad(y.square().sum(), points, create_graph=True)[0]
    second = torch.autograd.grad((slope * torch.linspace(-1, 1, 3).to(y)).sum(), (planes, points))
    return [y, *first, *second]


@pytest.mark.parametrize("impl", BOTH)
def test_several_sets_at_once(impl):
    planes, points = scene(channels=4)
    sets = [planes, planes[:, :, :2] * 2]
    options = {"projection": "orthogonal", "box_warp": BOX, "impl": impl}
    for together, planes in zip(triplane_sample_sets(sets, points, **options), sets, strict=True):
        assert torch.equal(together, triplane_sample(planes, points, **options))
    with pytest.raises(ValueError, match="one size"):
        triplane_sample_sets([sets[0], sets[1][..., :-1]], points, **options)


def test_channels_last_planes_are_the_same_planes():
    planes, points = scene()
    laid_out = channels_last(planes)
    assert torch.equal(planes, laid_out) and channels_last(laid_out) is laid_out
    options = {"projection": "orthogonal", "box_warp": BOX, "impl": "native"}
    assert torch.equal(
        triplane_sample(planes, points, **options), triplane_sample(laid_out, points, **options)
    )


def test_points_of_any_layout():
    planes, points = scene()
    turned = points.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    options = {"projection": "published", "box_warp": BOX, "impl": "native"}
    assert torch.equal(triplane_sample(planes, points, **options), triplane_sample(planes, turned, **options))


@pytest.mark.parametrize("scenes", [1, 2])  # one scene is dealt out by planes and channels
def test_threads_do_not_change_the_result(scenes):
    planes = torch.randn(scenes, 3, 40, 8, 8).requires_grad_()
    points = (torch.rand(scenes, 3000, 3) - 0.5).requires_grad_()
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        results.append(derivatives(planes, points, projection="orthogonal", box_warp=1.0, impl="native"))
    torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_cells_outside_the_table_are_refused():
    assert extension.use_native("triplane_sample", "native", torch.device("cpu"))
    ops = torch.ops.mate3d
    table, weight, values = torch.zeros(12, 2), torch.zeros(1, 1, 4), torch.zeros(1, 2)
    for cell in (-1, 7, 100):  # rows 7, 8, 11 and 12 of 12
        cells = torch.tensor([[cell]], dtype=torch.int32)
        with pytest.raises(RuntimeError, match="outside the table"):
            ops.triplane_gather(table, cells, weight, 4, 1)
        with pytest.raises(RuntimeError, match="outside the table"):
            ops.triplane_scatter(values, cells, weight, 4, 1, 12)
        with pytest.raises(RuntimeError, match="outside the table"):
            ops.triplane_dot(table, cells, values, 4, 1)


def test_operations_are_well_defined():
    assert extension.use_native("triplane_sample", "native", torch.device("cpu"))
    ops = torch.ops.mate3d
    points = ((torch.rand(2, 5, 3) - 0.5).double()).requires_grad_()
    projection = ([0, 1, 0, 2, 1, 2], BOX, 4, 3, 1 / 3)
    cells, weight = (each.detach() for each in ops.triplane_corners(points, *projection))
    weight.requires_grad_()
    table = torch.randn(2 * 3 * 12, 2, dtype=torch.float64, requires_grad=True)
    values = torch.randn(10, 2, dtype=torch.float64, requires_grad=True)
    direction, detached = torch.randn_like(points), (weight.detach(), points.detach())
    # tracing takes seconds, and torch's test of it adds up all results, which fails for cells and weights
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.triplane_slopes, (direction, detached[1], *projection), test_utils=utils)
    torch.library.opcheck(ops.triplane_curvature, (direction, *detached, *projection), test_utils=utils)
    torch.library.opcheck(ops.triplane_corners, (points, *projection), test_utils=utils)
    torch.library.opcheck(ops.triplane_gradient, (weight, points, *projection))
    torch.library.opcheck(ops.triplane_gather, (table, cells, weight, 3, 2))
    torch.library.opcheck(ops.triplane_scatter, (values, cells, weight, 3, 2, len(table)))
    torch.library.opcheck(ops.triplane_dot, (table, cells, values, 3, 2))
    turned = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(ops.triplane_turn, (turned,))
    undifferentiated = (table.detach(), points.detach(), *projection)
    torch.library.opcheck(ops.triplane_sample, undifferentiated, test_utils=utils)


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


def test_compiles_whole():
    """Traced into one graph, forwards and backwards; the tracing is what is tested, not a code generator."""
    arguments = [tensor.requires_grad_() for tensor in scene()]

    def function(planes, points):
        return triplane_sample(planes, points, projection="orthogonal", box_warp=BOX, impl="native")

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    found, expected = (
        torch.autograd.grad(each(*arguments).square().sum(), arguments) for each in (compiled, function)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# Pixels add up hundreds of points in any order; half precision rounds what each derivative takes and gives.
TOLERANCES = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-11}
KERNEL_SIZES = [  # scenes, points, channels, height, width
    (2, 0, 3, 4, 5),
    (1, 1, 1, 2, 2),
    (2, 3001, 24, 9, 12),
    (1, 4000, 33, 16, 16),
]


def away_from_pixels(scenes, count, sizes, dtype):
    """Points, some of them outside: where slopes jump, two roundings would give different ones."""
    drawn = ((torch.rand(100 + 4 * scenes * count, 3) - 0.5) * 1.3 * BOX).to(dtype)
    at = torch.stack([drawn.double() * size / BOX + (size - 1) / 2 for size in sizes])
    clear = ((at - at.round()).abs() > 0.01).all(0).all(-1)
    return drawn[clear][: scenes * count].reshape(scenes, count, 3)


def compare_on(device, impl, dtype, sizes, layout, **options):
    scenes, count, channels, height, width = sizes
    planes = torch.randn(scenes, 3, channels, height, width).to(dtype)
    points = away_from_pixels(scenes, count, (height, width), dtype)
    exact = [each.double().requires_grad_() for each in (planes, points)]
    planes, points = planes.to(device), points.to(device)
    if layout != "contiguous":
        planes = channels_last(planes) if layout == "channels_last" else planes.mT.contiguous().mT
        points = points.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    given = [each.requires_grad_() for each in (planes, points)]
    options = {"box_warp": BOX, **options}
    found = derivatives(*given, impl=impl, **options)
    expected = derivatives(*exact, impl="reference", **options)
    assert_near([each.cpu() for each in found], expected, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [*KERNEL_SIZES, (3, 129, 40, 5, 7)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_native_equals_reference(dtype, sizes, layout, reduce):
    """Points in several blocks and in parts of one, in whole vectors of channels and in parts."""
    compare_on("cpu", "native", dtype, sizes, layout, projection="orthogonal", reduce=reduce)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 127, 128, 129, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_anywhere_and_nowhere_in_a_block(count, dtype):
    """Beside points that share cells, as along an axis, others that are far, endless or undefined."""
    planes = torch.randn(2, 3, 20, 6, 9, dtype=dtype)
    points = (torch.rand(2, count, 3, dtype=dtype) - 0.5) * 1.3 * BOX
    points[:, count // 3 :, :2] = points[:, :1, :2]
    for value, odd in zip(
        (1e9, -1e30, torch.inf, -torch.inf, torch.nan), points[1].flatten()[::7], strict=False
    ):
        odd.fill_(value)
    options = {"projection": "orthogonal", "box_warp": BOX}
    found, expected = (triplane_sample(planes, points, impl=impl, **options) for impl in BOTH[::-1])
    # both round the same few products and sums, in another order
    torch.testing.assert_close(
        found, expected, equal_nan=True, rtol=0, atol=1e-5 if dtype.itemsize == 4 else 1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [*KERNEL_SIZES, (3, 129, 40, 5, 7)])
def test_values_are_the_same_without_gradients(dtype, sizes):
    """They come from other loops then."""
    scenes, count, channels, height, width = sizes
    planes = torch.randn(scenes, 3, channels, height, width, dtype=dtype, requires_grad=True)
    points = ((torch.rand(scenes, count, 3, dtype=dtype) - 0.5) * 1.3 * BOX).requires_grad_()
    options = {"projection": "published", "box_warp": BOX, "impl": "native"}
    y = triplane_sample(planes, points, **options)
    with torch.no_grad():
        alone = triplane_sample(planes, points, **options)
    assert y.requires_grad and not alone.requires_grad
    close = 1e-6 if dtype == torch.float32 else 1e-14  # compilers may fuse products and sums
    torch.testing.assert_close(alone, y, rtol=0, atol=close)


def test_tables_of_another_size_are_refused():
    assert extension.use_native("triplane_sample", "native", torch.device("cpu"))
    points, projection = torch.zeros(1, 2, 3), ([0, 1, 0, 2, 1, 2], BOX, 4, 3, 1 / 3)
    for table in (torch.zeros(35, 2), torch.zeros(36)):
        with pytest.raises(RuntimeError, match="pixels of the planes"):
            torch.ops.mate3d.triplane_sample(table, points, *projection)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (2, 3, 5), (1, 16, 64), (3, 40, 150), (2, 33, 1), (0, 4, 4), (2, 4, 0)]
)
def test_turning(dtype, sizes):
    assert extension.use_native("triplane_sample", "native", torch.device("cpu"))
    matrices = torch.randn(*sizes, dtype=dtype)
    turned = torch.ops.mate3d.triplane_turn(matrices)
    assert turned.is_contiguous() and torch.equal(turned, matrices.mT)
    assert torch.equal(torch.ops.mate3d.triplane_turn(turned.mT), turned)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", KERNEL_SIZES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_kernel_equals_reference(dtype, sizes, layout, reduce):
    need_kernels("triplane_sample")
    compare_on("cuda", "native", dtype, sizes, layout, projection="orthogonal", reduce=reduce)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_reference_is_the_same_on_cuda(dtype, projection):
    for sizes in KERNEL_SIZES:
        compare_on("cuda", "reference", dtype, sizes, "contiguous", projection=projection)


@pytest.mark.cuda
def test_kernel_with_far_and_undefined_points():
    need_kernels("triplane_sample")
    test_far_and_undefined_points("native", "cuda")
