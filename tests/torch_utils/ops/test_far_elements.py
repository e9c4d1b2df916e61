"""The CUDA kernels on tensors of more than 2^31 elements, whose places no 32-bit number holds.

The kernels run emulated (see emulator.py), and only their last blocks. The tensors are sparse files of zeros,
of which nothing but the end is ever touched: nearly all of their gigabytes are never there.
"""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Callable
from ctypes import c_char_p, c_float, c_int

import pytest
import torch
from torch import Tensor

from tests.torch_utils.ops.emulator import (
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
    corners_structure,
    pointers,
    rays_structure,
    upfirdn_structure,
)
from torch_utils import extension
from torch_utils.ops import fused_mlp as _mlp  # noqa: F401 (defines the operations)
from torch_utils.ops import triplane_sample as _sample  # noqa: F401
from torch_utils.ops.march_rays import march_rays, unsorted_weights
from torch_utils.ops.upfirdn2d import upfirdn2d

FAR = 1 << 31
# Rounding of sums of up to some hundred products of about 1, in single precision.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

Far = Callable[..., Tensor]


@pytest.fixture
def far(tmp_path) -> Far:
    """``far(*shape, dtype=...)``: zeros that take room only where something is written."""

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        file = tmp_path / uuid.uuid4().hex
        size = torch.Size(shape).numel()
        flat = torch.from_file(str(file), shared=True, size=size, dtype=dtype)
        file.unlink()  # gone with the tensor
        return flat.view(shape)

    return make


def fill_end(tensor: Tensor, count: int) -> Tensor:
    """Random numbers in the last ``count`` rows, which are returned."""
    end = tensor[-count:]
    end.copy_(torch.randn(end.shape))
    return end


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("channels", "step"), [(1009, 70_001), (64, 1), (5, 3)])
def test_bias_act(act, far, dtype, channels, step):
    name, tolerance = WIDTHS[dtype]
    count = (FAR // (channels * step) + 2) * channels * step
    tile = 512 * (16 // dtype.itemsize)  # elements of a block
    first = (count - 5000) // tile
    start = first * tile
    x, factor, y = (far(count, dtype=dtype) for _ in range(3))
    u, scale = fill_end(x, count - start), fill_end(factor, count - start)
    bias, spread = torch.randn(channels).to(dtype), torch.randn(channels).to(dtype)
    channel = torch.arange(start, count) // step % channels
    arguments = bias_act_structure(c_float)(
        **pointers(x=x, factor=factor, bias=bias, spread=spread, y=y),
        outer=count // (channels * step), channels=channels, step=step, alpha=0.2, gain=1.3, clamp=1e9,
    )  # fmt: skip
    function = getattr(act, f"act_{name}")
    function.restype = c_char_p
    with blocks_from(act, first):
        assert function(2, 1, ctypes.byref(arguments)) is None  # the derivative of leaky ReLU
    slope = torch.where(u.float() + bias[channel].float() > 0, 1.3, 1.3 * 0.2)
    expected = slope * (scale.float() + spread[channel].float())
    torch.testing.assert_close(y[start:].float(), expected, rtol=tolerance, atol=tolerance)
    assert not y[start - 1000 : start].any()


@pytest.mark.parametrize("inner", [1, 4])
@pytest.mark.parametrize(
    ("up", "down", "taps", "padding"),
    [
        (1, 1, 4, (1, 2, 1, 2)),
        (2, 1, 4, (2, 1, 2, 1)),
        (1, 2, 4, (1, 1, 1, 1)),
        (1, 1, 3, (1, 1, 1, 1)),  # a thread makes many pixels, of pictures that lie far from each other
    ],
)
def test_upfirdn2d(filters, far, inner, up, down, taps, padding):
    side = 32
    out = side * up // down
    count = 129 * 65536 * 256  # so that the last of 65536 blocks make the last pixels
    outer = count // (min(side, out) ** 2 * inner)
    x, y = far(outer, side, side, inner), far(outer, out, out, inner)
    assert min(x.numel(), y.numel()) > FAR
    picture, f = fill_end(x, 1), torch.randn(taps, taps)
    if taps == 4:
        strips = -(-out // (8 * up)) * out * inner  # of a picture
        first = (outer - 1) * strips // 256
    else:
        first = 65536 - out * out * inner // 256
    arguments = upfirdn_structure(c_float)(
        **pointers(x=x, f=f, y=y),
        outer=outer,
        inner=inner,
        rows=Axis(side, out, up, down, padding[2], taps),
        columns=Axis(side, out, up, down, padding[0], taps),
        flip=False,
        gain=1.5,
    )
    with blocks_from(filters, first):
        call(filters.filter_float, arguments)
    expected = upfirdn2d(
        picture.permute(0, 3, 1, 2), f, up=up, down=down, padding=padding, gain=1.5, impl="reference"
    )
    torch.testing.assert_close(y[-1:].permute(0, 3, 1, 2), expected, **CLOSE)


# Elements of the maps between points and planes: nine rounds of 2^20 blocks of 256 threads.
ROUNDS = 9 << 28


@pytest.mark.parametrize("direction", ["gather", "scatter"])
def test_rows_of_planes(sample, far, direction):
    planes, channels, pitch, last = 3, 32, 70, 8  # a block's last round is 8 points of 32 channels
    points, rows = ROUNDS // channels, FAR // channels + 1000
    cells, weight = far(points, planes, dtype=torch.int32), far(points, planes * 4)
    table, values = far(rows, channels), far(points, channels)
    cells[-last:] = torch.randint(rows - 900, rows - pitch - 1, (last, planes))
    corners = (cells[-last:, :, None] + torch.tensor([0, 1, pitch, pitch + 1])).flatten(1).long()
    factor = fill_end(weight, last)
    arguments = Rows(points, planes, channels, pitch, **pointers(cells=cells, weight=weight))
    function = getattr(sample, f"{direction}_float")
    with blocks_from(sample, (1 << 20) - 1):
        if direction == "gather":
            fill_end(table, 1000)
            call(function, arguments, table.data_ptr(), values.data_ptr())
            expected = (factor[..., None] * table[corners]).sum(1)
            torch.testing.assert_close(values[-last:], expected, **CLOSE)
        else:
            added = fill_end(values, last)
            call(function, arguments, values.data_ptr(), table.data_ptr())
            expected = torch.zeros(1000, channels)
            terms = factor[..., None] * added[:, None]
            expected.index_add_(0, corners.flatten() - (rows - 1000), terms.flatten(0, 1))
            torch.testing.assert_close(table[-1000:], expected, **CLOSE)


def test_dots_of_planes(sample, far):
    planes, channels, pitch, last = 3, 2, 70, 22  # a block's last round is 256 of 12 corners each
    points, rows = ROUNDS // 12, FAR // channels + 1000
    cells, dots = far(points, planes, dtype=torch.int32), far(points, planes * 4)
    table, values = far(rows, channels), far(points, channels)
    cells[-last:] = torch.randint(rows - 900, rows - pitch - 1, (last, planes))
    corners = (cells[-last:, :, None] + torch.tensor([0, 1, pitch, pitch + 1])).flatten(1).long()
    fill_end(table, 1000)
    value = fill_end(values, last)
    arguments = Rows(points, planes, channels, pitch, **pointers(cells=cells))
    with blocks_from(sample, (1 << 20) - 1):
        call(sample.dot_float, arguments, table.data_ptr(), values.data_ptr(), dots.data_ptr())
    expected = (table[corners] * value[:, None]).sum(-1)
    torch.testing.assert_close(dots[-last:].flatten()[-256:], expected.flatten()[-256:], **CLOSE)


def test_corners_of_planes(sample, far):
    assert extension.use_native("triplane_sample", "native", torch.device("cpu"))
    ops, axes = torch.ops.mate3d, [0, 1, 0, 2, 2, 0]
    points, last, height, width, box, scale = 1 << 28, 256, 4, 6, 1.4, 1 / 3
    place, direction, by_weight = far(points, 3), far(points, 3), far(points, 3, 4)
    cells, weight, by_points = far(points, 3, dtype=torch.int32), far(points, 3, 4), far(points, 3)
    inputs = {}
    for name, tensor in {"points": place, "direction": direction, "by_weight": by_weight}.items():
        inputs[name] = torch.stack([torch.zeros(last, *tensor.shape[1:]), fill_end(tensor, last)])
    flat = inputs["by_weight"].flatten(0, 1)
    projection = (axes, box, height, width, scale)
    structure = corners_structure(c_float)
    to = dict(structure._fields_)["to"](
        3, (c_int * 8)(*axes), height, width, points // 2, width / box, height / box, scale
    )

    def run(wanted: int, **outputs: Tensor) -> None:
        given = pointers(points=place, direction=direction, by_weight=by_weight, **outputs)
        with blocks_from(sample, (1 << 20) - 1):
            call(sample.corners_float, structure(wanted=wanted, to=to, count=points, **given))

    # two scenes, so that the last points lie in the second
    expected_cells, expected = ops.triplane_corners(inputs["points"], *projection)
    run(0, cells=cells, weight=weight)
    assert torch.equal(cells[-last:], expected_cells[-last:])
    torch.testing.assert_close(weight[-last:], expected[-last:], **CLOSE)
    run(1, weight=weight)
    expected = ops.triplane_slopes(inputs["direction"], inputs["points"], *projection)
    torch.testing.assert_close(weight[-last:], expected[-last:], **CLOSE)
    run(2, by_points=by_points)
    expected = ops.triplane_gradient(flat, inputs["points"], *projection)
    torch.testing.assert_close(by_points[-last:], expected[1], **CLOSE)
    run(3, by_points=by_points)
    expected = ops.triplane_curvature(inputs["direction"], flat, inputs["points"], *projection)
    torch.testing.assert_close(by_points[-last:], expected[1], **CLOSE)


def test_march_rays(march, far):
    rays, samples, features = 65536, 512, 65  # as many rays as blocks at most
    of_samples = {
        "colour": far(rays, samples, features),
        "part_sdf": far(rays, samples, features),
        "density": far(rays, samples),
        "depth": far(rays, samples),
        "normal": far(rays, samples, 3),
    }
    assert of_samples["colour"].numel() > FAR
    ray = {name: fill_end(tensor, 1) for name, tensor in of_samples.items()}
    ray["density"].abs_().mul_(0.05)  # so that light comes from many samples
    exact = {name: x.double().requires_grad_(name != "depth") for name, x in ray.items()}
    seen = march_rays(
        exact["density"], exact["depth"], exact["colour"], exact["part_sdf"], exact["normal"],
        marching="published", sharpness=3.0, impl="reference",
    )  # fmt: skip
    weights = unsorted_weights(exact["density"], exact["depth"], "published").detach()
    expected = {"colour": seen.values, "mask": seen.mask, "normal": seen.normals}
    found = {name: far(rays, *x.shape[1:]) for name, x in expected.items()}
    more = {"depth": far(rays), "weight": far(rays), "weights": far(rays, samples)}
    given = rays_structure(c_float)(rays, samples, features, features, True, 3.0, **pointers(**of_samples))
    with blocks_from(march, rays - 1):
        call(march.march_float, given, Marched(**pointers(**found, **more)))
    for name, x in expected.items():
        torch.testing.assert_close(found[name][-1:].double(), x.detach(), **CLOSE)
    torch.testing.assert_close(more["weights"][-1:].double(), weights, **CLOSE)

    by = {f"by_{name}": far(rays, *x.shape[1:]) for name, x in expected.items()}
    cotangents = [fill_end(by[f"by_{name}"], 1).double() for name in expected]
    wanted = {name: x for name, x in exact.items() if x.requires_grad}
    gradients = torch.autograd.grad(list(expected.values()), list(wanted.values()), cotangents)
    found = {name: far(*of_samples[name].shape) for name in wanted}
    with blocks_from(march, rays - 1):
        out = RayGradients(**pointers(weights=more["weights"], **by, **found))
        call(march.gradient_float, given, out)
    for name, x in zip(wanted, gradients, strict=True):
        torch.testing.assert_close(found[name][-1:].double(), x, **CLOSE)


POINTS = 14 * 65536 * 128  # of perceptrons: the last of 65536 blocks makes the last in its 14th round, or 7th


@pytest.mark.parametrize("order", [0, 1, 2])
def test_fused_mlp(mlp, far, order):
    assert extension.use_native("fused_mlp", "native", torch.device("cpu"))
    channels, heads, width, outputs = 20, 19, 4, 1
    points, last = POINTS, 128
    x, direction, grad = far(points, channels), far(points, channels), far(points, heads * outputs)
    y, to_x = far(points, heads * outputs), far(points, channels)
    assert min(x.numel(), y.numel()) > FAR
    t = {"x": fill_end(x, last), "direction": fill_end(direction, last), "grad": fill_end(grad, last)}
    shapes = {
        "weight1": (heads, width, channels),
        "bias1": (heads, width),
        "weight2": (heads, outputs, width),
        "bias2": (heads, outputs),
    }
    t |= {name: torch.randn(shape) for name, shape in shapes.items()}
    weights = {name: t[name] for name in shapes}
    arguments = Mlp(
        points, channels, heads, width, outputs,
        **pointers(x=x, direction=direction, grad=grad, **weights, y=y, to_x=to_x),
    )  # fmt: skip
    mlp.mlp_float.restype = c_char_p
    with blocks_from(mlp, 65535):
        assert mlp.mlp_float(order, ctypes.byref(arguments), ctypes.byref(Partial())) is None
    found = y[-last:], to_x[-last:]
    shared = t["x"], t["weight1"], t["bias1"], t["weight2"]
    ops = torch.ops.mate3d
    if order == 0:
        expected = ops.fused_mlp(*shared, t["bias2"]), None
    elif order == 1:
        expected = None, ops.fused_mlp_gradient(t["grad"], *shared, False)[0]
    else:
        expected = ops.fused_mlp_second(t["direction"], t["grad"], *shared, False)[:2]
    for one, other in zip(found, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, **CLOSE)


def test_weights_of_fused_mlp(mlp, far):
    assert extension.use_native("fused_mlp", "native", torch.device("cpu"))
    channels, heads, width, outputs, last = 20, 2, 4, 1, 32
    slabs = POINTS // last * 4  # a block to each tile of points, whose four warps have a sum each
    x, grad, to_x = far(POINTS, channels), far(POINTS, heads * outputs), far(POINTS, channels)
    tile = fill_end(x, last), fill_end(grad, last)
    weight1, bias1 = torch.randn(heads, width, channels), torch.randn(heads, width)
    weight2 = torch.randn(heads, outputs, width)
    sums = {
        "weight1": far(slabs, *weight1.shape),
        "bias1": far(slabs, *bias1.shape),
        "weight2": far(slabs, *weight2.shape),
    }
    assert sums["weight1"].numel() > FAR
    weights = pointers(weight1=weight1, bias1=bias1, weight2=weight2)
    arguments = Mlp(POINTS, channels, heads, width, outputs, **pointers(x=x, grad=grad, to_x=to_x), **weights)
    partial = Partial(slabs=slabs, **pointers(**sums))
    mlp.mlp_float.restype = c_char_p
    with blocks_from(mlp, slabs // 4 - 1):
        assert mlp.mlp_float(1, ctypes.byref(arguments), ctypes.byref(partial)) is None
    expected = torch.ops.mate3d.fused_mlp_gradient(tile[1], tile[0], weight1, bias1, weight2, True)[1:]
    for one, other in zip(sums.values(), expected, strict=True):
        torch.testing.assert_close(one[-4:].sum(0), other, **CLOSE)
