"""The CUDA kernels themselves, run by threads of the CPU (see emulator.py), against native CPU operations."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_double, c_float, c_int, c_int64

import pytest
import torch

from tests.torch_utils.ops.emulator import (
    NUMBERS,
    WIDTHS,
    Axis,
    Marched,
    Mlp,
    Partial,
    RayGradients,
    Rows,
    bias_act_structure,
    blocks_from,
    call,
    compiled,
    corners_structure,
    pointers,
    rays_structure,
    upfirdn_structure,
)
from torch_utils import extension
from torch_utils.ops import fused_mlp as _mlp  # noqa: F401 (defines the operations)
from torch_utils.ops import triplane_sample as _sample  # noqa: F401
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.march_rays import MARCHING, march_rays, unsorted_weights
from torch_utils.ops.upfirdn2d import upfirdn2d

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize(
    ("points", "channels", "heads", "width", "outputs"),
    [(150, 24, 3, 20, 1), (33, 32, 1, 16, 9), (1, 1, 1, 1, 1), (40, 40, 1, 17, 3)],
)
def test_perceptrons(mlp, dtype, points, channels, heads, width, outputs):
    if dtype is torch.float64 and channels > 32:
        pytest.skip("the kernels have no room for that")
    assert extension.use_native("fused_mlp", "native", CPU)
    ops, (name, _) = torch.ops.mate3d, NUMBERS[dtype]
    shapes = {
        "direction": (points, channels),
        "grad": (points, heads * outputs),
        "x": (points, channels),
        "weight1": (heads, width, channels),
        "bias1": (heads, width),
        "weight2": (heads, outputs, width),
        "bias2": (heads, outputs),
    }
    t = {key: torch.randn(shape, dtype=dtype) for key, shape in shapes.items()}
    shared = (t["x"], t["weight1"], t["bias1"], t["weight2"])
    expected = [
        (ops.fused_mlp(*shared, t["bias2"]),),
        (None, *ops.fused_mlp_gradient(t["grad"], *shared, True)),
        ops.fused_mlp_second(t["direction"], t["grad"], *shared, True),
    ]
    for order, wanted in enumerate(expected):
        slabs = 8
        y, to_x = torch.full_like(t["grad"], torch.nan), torch.full_like(t["x"], torch.nan)
        sums = {
            key: torch.full((slabs, *shapes[key]), torch.nan, dtype=dtype) for key in shapes if "1" in key
        }
        sums["weight2"] = torch.full((slabs, *shapes["weight2"]), torch.nan, dtype=dtype)
        arguments = Mlp(points, channels, heads, width, outputs, **pointers(**t, y=y, to_x=to_x))
        partial = Partial(slabs=slabs, **pointers(**sums))
        function = getattr(mlp, f"mlp_{name}")
        function.restype = c_char_p
        assert function(order, ctypes.byref(arguments), ctypes.byref(partial)) is None
        found = [y, to_x, *(sums[key].sum(0) for key in ("weight1", "bias1", "weight2"))]
        for a, b in zip(found, wanted, strict=False):
            if b is not None:  # sums of up to 150 rounded products
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 if dtype is torch.float32 else 1e-10)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_planes(sample, dtype):
    assert extension.use_native("triplane_sample", "native", CPU)
    ops, (name, number) = torch.ops.mate3d, NUMBERS[dtype]
    scenes, count, channels, height, width, box, scale = 2, 70, 5, 4, 6, 1.4, 1 / 3
    axes = [0, 1, 0, 2, 2, 0]
    points = (torch.rand(scenes, count, 3, dtype=dtype) - 0.5) * 1.5 * box
    points[0, :2] = torch.tensor([[torch.nan, 0, 0], [torch.inf, 1e30, -1e30]])
    direction = torch.randn_like(points)
    projection = (axes, box, height, width, scale)
    cells, weight = ops.triplane_corners(points, *projection)
    by_weight = torch.randn_like(weight)

    corners = corners_structure(number)
    to = dict(corners._fields_)["to"](
        3, (c_int * 8)(*axes), height, width, count, width / box, height / box, scale
    )
    inputs = pointers(points=points, direction=direction, by_weight=by_weight)

    def run_corners(wanted, **outputs):
        call(
            getattr(sample, f"corners_{name}"),
            corners(wanted=wanted, to=to, count=scenes * count, **inputs, **pointers(**outputs)),
        )

    close = {"equal_nan": True, "rtol": 1e-5, "atol": 1e-5 if dtype is torch.float32 else 1e-12}
    found_cells, found = torch.empty_like(cells), torch.empty_like(weight)
    run_corners(0, cells=found_cells, weight=found)
    assert torch.equal(found_cells, cells)
    torch.testing.assert_close(found, weight, **close)
    run_corners(1, weight=found)
    torch.testing.assert_close(found, ops.triplane_slopes(direction, points, *projection), **close)
    by_points = torch.empty_like(points)
    run_corners(2, by_points=by_points)
    torch.testing.assert_close(by_points, ops.triplane_gradient(by_weight, points, *projection), **close)
    run_corners(3, by_points=by_points)
    expected = ops.triplane_curvature(direction, by_weight, points, *projection)
    torch.testing.assert_close(by_points, expected, **close)

    weight = weight.nan_to_num()
    table = torch.randn(scenes * 3 * height * width, channels, dtype=dtype)
    values = torch.randn(scenes * count, channels, dtype=dtype)
    rows = Rows(scenes * count, 3, channels, width, **pointers(cells=cells, weight=weight))
    found = torch.empty_like(values)
    call(getattr(sample, f"gather_{name}"), rows, table.data_ptr(), found.data_ptr())
    torch.testing.assert_close(found, ops.triplane_gather(table, cells, weight, width, scenes), **close)
    found = torch.zeros_like(table)
    call(getattr(sample, f"scatter_{name}"), rows, values.data_ptr(), found.data_ptr())
    expected = ops.triplane_scatter(values, cells, weight, width, scenes, len(table))
    torch.testing.assert_close(found, expected, **close)
    found = torch.empty_like(weight)
    call(getattr(sample, f"dot_{name}"), rows, table.data_ptr(), values.data_ptr(), found.data_ptr())
    torch.testing.assert_close(found, ops.triplane_dot(table, cells, values, width, scenes), **close)


def run_march(march, inputs, outputs, marching, *, gradient=False):
    """``inputs`` and ``outputs``: tensors by the names that the structures have for them."""
    rays, samples, features = inputs["colour"].shape
    parts = inputs["part_sdf"].shape[-1] if "part_sdf" in inputs else 0
    name, number = NUMBERS[inputs["colour"].dtype]
    given = rays_structure(number)(
        rays, samples, features, parts, marching == "published", 3.0, **pointers(**inputs)
    )
    out = (RayGradients if gradient else Marched)(**pointers(**outputs))
    with blocks_from(march, 0, most=2):
        call(getattr(march, f"{'gradient' if gradient else 'march'}_{name}"), given, out)


def undefined_like(tensors, dtype):
    return {key: torch.full(x.shape, torch.nan, dtype=dtype) for key, x in tensors.items()}


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("marching", MARCHING)
@pytest.mark.parametrize(
    ("rays", "samples", "features", "parts", "normals"),
    [
        (5, 7, 4, 3, True),  # more rays than blocks
        (2, 70, 67, 66, True),  # more of everything else than threads
        (3, 1, 3, 0, False),
    ],
)
def test_rays(march, dtype, marching, rays, samples, features, parts, normals):
    depth = torch.rand(rays, samples, dtype=dtype)
    inputs = {
        "density": torch.rand(rays, samples, dtype=dtype) * 8,
        "colour": torch.randn(rays, samples, features, dtype=dtype),
        "part_sdf": torch.randn(rays, samples, parts, dtype=dtype) if parts else None,
        "normal": torch.randn(rays, samples, 3, dtype=dtype) if normals else None,
    }
    inputs = {key: x for key, x in inputs.items() if x is not None}
    exact = {key: x.double().requires_grad_() for key, x in inputs.items()}
    seen = march_rays(
        exact["density"],
        depth.double(),
        exact["colour"],
        exact.get("part_sdf"),
        exact.get("normal"),
        marching=marching,
        sharpness=3.0,
        impl="reference",
    )
    weights = unsorted_weights(exact["density"], depth.double(), marching)
    expected = {
        "colour": seen.values,
        "depth": seen.depth,
        "weight": seen.weight,
        "mask": seen.mask,
        "normal": seen.normals,
        "weights": weights,
    }
    expected = {key: x for key, x in expected.items() if x is not None}
    found = undefined_like(expected, dtype)
    run_march(march, {**inputs, "depth": depth}, found, marching)
    # sums of up to 70 rounded products
    close = {"rtol": 1e-4, "atol": 1e-4 if dtype is torch.float32 else 1e-10}
    for key, x in expected.items():
        torch.testing.assert_close(found[key].double(), x.detach(), **close)

    seen = {key: x for key, x in expected.items() if key != "weights"}
    by = {key: torch.randn(x.shape, dtype=dtype) for key, x in seen.items()}
    for kept in (list(seen), ["depth", "colour"]):
        outputs, cotangents = [seen[key] for key in kept], [by[key].double() for key in kept]
        wanted = torch.autograd.grad(
            outputs, list(exact.values()), cotangents, retain_graph=True, allow_unused=True
        )
        wanted = {key: x for key, x in zip(exact, wanted, strict=True) if x is not None}
        found = undefined_like(wanted, dtype)
        given = {"weights": weights.detach().to(dtype), **{f"by_{key}": by[key] for key in kept}}
        run_march(march, {**inputs, "depth": depth}, {**given, **found}, marching, gradient=True)
        for key, x in wanted.items():
            torch.testing.assert_close(found[key].double(), x, **close)


def test_rays_with_depths_that_are_equal_or_no_numbers(march):
    assert extension.use_native("march_rays", "native", CPU)
    density, colour = torch.rand(3, 40) * 8, torch.randn(3, 40, 2)
    depth = torch.randint(10, (3, 40)) / 10
    depth[1, [0, 3]] = torch.nan
    expected = torch.ops.mate3d.march_rays(density, depth, colour, None, None, True, 3.0)
    names = ("colour", "depth", "weight", "mask", "normal", "weights")
    found = undefined_like(dict(zip(names, expected, strict=True)), torch.float32)
    run_march(march, {"density": density, "depth": depth, "colour": colour}, found, "published")
    for key, x in zip(names, expected, strict=True):  # sums of 40 rounded products
        torch.testing.assert_close(found[key], x, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_too_many_samples_are_refused(march):
    function = march.march_float
    function.restype = c_char_p
    rays, out = rays_structure(c_float)(1, 1025, 1), Marched()
    assert function(ctypes.byref(rays), ctypes.byref(out)) == b"more than 1024 samples on a ray"


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize(
    ("outer", "channels", "step", "offset"),
    [
        (2, 3, 64, 0),  # rows of whole vectors; of which vectors cross the ends; shorter than a vector
        (3, 5, 9, 0),
        (5, 7, 3, 0),
        (2, 3, 1500, 0),  # several blocks
        (40, 16, 1, 0),  # channels innermost; not in whole vectors
        (40, 5, 1, 0),
        (2, 3, 64, 1),  # pointers that no vector has
        (1, 1, 1, 0),
    ],
)
def test_bias_and_activation(act, dtype, outer, channels, step, offset):
    name, tolerance = WIDTHS[dtype]
    structure_of = bias_act_structure(c_double if dtype is torch.float64 else c_float)
    count = outer * channels * step

    def draw(count):
        return torch.randn(count + offset).to(dtype)[offset:]

    x, factor, bias, spread = draw(count), draw(count), draw(channels), draw(channels)
    wide = [
        each.double().view(shape)
        for each, shape in (
            (x, (outer, channels, step)),
            (factor, (outer, channels, step)),
            (bias, (1, channels, 1)),
            (spread, (1, channels, 1)),
        )
    ]
    for number, activation in enumerate(ACTIVATIONS):
        if activation not in ("lrelu", "swish", "linear"):
            continue
        for wanted in (0, 1, 2, 3) if activation == "lrelu" else (0, 1, 2):
            for by_channel in (True, False):
                moved = (wide[0] + wide[2] if by_channel and wanted != 3 else wide[0]).requires_grad_()
                value = bias_act(moved, act=activation, gain=1.3, clamp=1.0, impl="reference")
                expected = value
                if wanted:
                    scale = wide[1] + wide[3] if by_channel else wide[1]
                    expected = slope(activation, moved.detach(), wanted, 1.3, 1.0) * scale
                # the result is written between numbers that must stay
                y = torch.full((count + offset + 8,), 7.0, dtype=dtype)
                given = pointers(x=x, y=y[offset:])
                if wanted:
                    given |= pointers(factor=factor)
                if by_channel:
                    given |= pointers(bias=bias) | (pointers(spread=spread) if wanted else {})
                settings = dict(outer=outer, channels=channels, step=step, alpha=0.2, gain=1.3, clamp=1.0)
                function = getattr(act, f"act_{name}")
                function.restype = c_char_p
                assert function(number, wanted, ctypes.byref(structure_of(**given, **settings))) is None
                found = y[offset : offset + count].double().view_as(expected)
                torch.testing.assert_close(found, expected.detach(), rtol=tolerance, atol=tolerance)
                assert (y[:offset] == 7).all() and (y[offset + count :] == 7).all()


def slope(activation, u, wanted, gain, clamp):
    """The derivative of which `wanted` is the number; what is clamped has none."""
    u = u.clone().requires_grad_()
    if wanted == 3:  # u is the value, of a homogeneous activation
        return (torch.where(u > 0, gain, torch.full_like(u, 0.2 * gain)) * (u.abs() < clamp)).detach()
    y = bias_act(u, act=activation, gain=gain, impl="reference")
    (derivative,) = torch.autograd.grad(y.sum(), u, create_graph=True)
    if wanted == 2:
        if not derivative.requires_grad:
            return torch.zeros_like(u)
        (derivative,) = torch.autograd.grad(derivative.sum(), u, materialize_grads=True)
    return torch.where(y.abs() > clamp, 0.0, derivative).detach()


@pytest.mark.parametrize("largest", [2**31 - 1, 2**31, 2**40])
def test_division(act, largest):
    act.divided.restype = c_int64
    near = [1, 2, 3, 5, 7, 255, 257, 65537, 2**20 - 1, 2**30 - 1, 2**30, 2**31 - 2, 2**31 - 1, 2**31 + 1]
    numbers = {n + d for n in (*near, largest) for d in (-1, 0, 1)} | set(
        torch.randint(2**31, (50,)).tolist()
    )
    for by in (*near, largest, 2**41):
        for number in numbers | {k * by - 1 for k in (1, 2, 1000)}:
            if 0 <= number <= largest:
                found = act.divided(c_int64(number), c_int64(by), c_int64(largest))
                assert found == number // by, (number, by)


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    ("up", "down", "padding", "taps"),
    [
        (1, 1, (1, 1, 2, 1), 4),
        (1, 1, (-1, 2, -2, 3), 4),
        (1, 2, (1, 1, 1, 2), 4),
        (2, 1, (2, 1, 2, 1), 4),  # the first row begins with the first tap; with the second
        (2, 1, (1, 1, 3, 2), 4),
        (2, 1, (-1, 2, -3, 1), 4),
        (2, 2, (2, 1, 2, 1), 4),  # what has no kernel of strips
        (1, 1, (1, 1, 1, 1), 3),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3, 8, 7), (1, 5, 21, 19), (1, 1, 4, 5)])
@pytest.mark.parametrize("flip", [False, True])
def test_filters(filters, dtype, beside, up, down, padding, taps, shape, flip):
    name, tolerance = WIDTHS[dtype]
    x = torch.randn(shape).to(dtype)
    f = torch.randn(taps, taps, dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    compare_filters(filters, name, tolerance, x, f, beside, (up, down, padding, flip))


def compare_filters(filters, name, tolerance, x, f, beside, steps, gain=1.7):
    up, down, padding, flip = steps
    arguments = dict(up=up, down=down, padding=padding, flip_filter=flip, gain=gain)
    expected = upfirdn2d(x.double(), f.double(), **arguments, impl="reference")
    (left, _, top, _), shape = padding, x.shape
    x = x.permute(0, 2, 3, 1).contiguous() if beside else x.contiguous()
    n, c, height, width = expected.shape
    y = torch.full((n, height, width, c) if beside else expected.shape, torch.nan, dtype=x.dtype)
    arguments = upfirdn_structure(NUMBERS[f.dtype][1])(
        **pointers(x=x, f=f, y=y),
        outer=n if beside else n * c,
        inner=c if beside else 1,
        rows=Axis(shape[2], height, up, down, top, f.shape[0]),
        columns=Axis(shape[3], width, up, down, left, f.shape[1]),
        flip=flip,
        gain=gain,
    )
    call(getattr(filters, f"filter_{name}"), arguments)
    found = (y.permute(0, 3, 1, 2) if beside else y).double()
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_filters_in_long_strips(tmp_path, beside, up, down):
    """They take pictures so large that an emulator has no time for them, unless fewer threads are enough."""
    library = compiled("upfirdn2d", tmp_path, FILTER_FLOAT, {"int64_t(1) << 17;": "1;"})
    x, f = torch.randn(2, 3, 29, 37), torch.randn(4, 4)
    for flip in (False, True):
        compare_filters(library, "float", 1e-5, x, f, beside, (up, down, (2, 1, 1, 2), flip))


FILTER_FLOAT = """extern "C" const char* filter_float(const UpfirdnArguments<float, float>* a) {
  return upfirdn2d_cuda(*a, nullptr);
}
"""


def test_too_many_channels_are_refused(mlp):
    arguments, partial = Mlp(1, 65, 1, 1, 1), Partial()
    mlp.mlp_float.restype = c_char_p
    assert b"more channels" in mlp.mlp_float(0, ctypes.byref(arguments), ctypes.byref(partial))
