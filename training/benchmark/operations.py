"""Each native operation against its reference: forward, with backward, with double backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from torch_utils import extension
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.fused_mlp import fused_mlp
from torch_utils.ops.march_rays import march_rays
from torch_utils.ops.triplane_sample import channels_last, triplane_sample
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from training.benchmark.measure import Machine, Row, memory_beside_mb, repeat_in_turns

Run = Callable[..., Tensor | tuple[Tensor, ...]]
PASSES = ("forward", "with backward", "with double backward")


@dataclass(frozen=True)
class Case:
    """An operation on tensors of one size."""

    operation: str
    name: str
    run: Run  # (*inputs, impl=...) -> what it computes
    inputs: tuple[Tensor, ...]  # those that are differentiated
    read: int  # bytes that the outputs depend on
    kept: int  # bytes that the gradients depend on, beside the outputs' cotangents
    twice: bool = True  # whether training needs its second derivative
    curved: bool = True  # whether gradients change with the inputs, not with the cotangents alone
    flops: tuple[int, ...] = ()  # of PASSES, where arithmetic takes longer than memory


def cases(shrink: int = 1, device: str = "cpu") -> Iterator[Case]:
    """At the sizes of the official networks; sides and points divided by ``shrink``."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    fir = setup_filter((1, 3, 3, 1)).to(device)
    for channels, side in ((128, 512), (256, 256), (512, 64)):
        side = max(8, side // shrink)
        x, bias = draw(1, channels, side, side), draw(channels)
        yield Case(
            "bias_act",
            f"leaky ReLU, {channels} x {side} x {side}",
            lambda x, b, impl: bias_act(_Made.apply(x), b, act="lrelu", overwrite=True, impl=impl),
            (x, bias),
            read=_bytes(x, bias),
            kept=_bytes(x),  # or as large a value, whose sign tells the slope
            curved=False,
        )
    side = max(8, 256 // shrink)
    for name, channels, size, steps in (
        ("blur after up-convolution", 128, side + 1, dict(padding=1, gain=4)),
        ("up-sampling of planes", 96, side // 2, dict(up=2, padding=(2, 1, 2, 1), gain=4)),
        ("up-sampling of pictures", 3, side, dict(up=2, padding=(2, 1, 2, 1), gain=4)),
        ("down-sampling", 128, side, dict(down=2, padding=1)),
    ):
        x = draw(1, channels, size, size)
        yield Case(
            "upfirdn2d",
            f"{name}, {channels} x {size} x {size}",
            lambda x, impl, steps=steps: upfirdn2d(x, fir, impl=impl, **steps),
            (x,),
            read=_bytes(x),
            kept=0,  # it is linear
            curved=False,
        )
    rays, samples = max(4, 4096 // shrink), 96
    depth = torch.rand(rays, samples, device=device)
    along = draw(rays, samples), draw(rays, samples, 32), draw(rays, samples, 19) / 10
    yield Case(
        "march_rays",
        f"{rays} rays, {samples} samples, 32 features, 19 parts",
        lambda *x, impl: _seen(*x, depth=depth, impl=impl),
        along,
        read=_bytes(*along, depth),
        kept=_bytes(*along, depth),
        twice=False,
    )
    drawn = draw(1, 3, 32, side, side)
    for name, planes, points in (
        ("points anywhere", drawn, torch.rand(1, rays * 24, 3, device=device) - 0.5),
        ("points along rays, channels last", channels_last(drawn), _along_rays(rays, 24, device)),
    ):
        read = _bytes(points) + _bytes_around(planes, points)
        yield Case(
            "triplane_sample",
            f"{points.shape[1]} {name}, 32 channels, planes {side} x {side}",
            _sampled,
            (planes, points),
            read=read,
            kept=read,
        )
    points, heads, hidden = rays * 24, 19, 64
    # FLOPs of a product of all points with each layer, for any of its three factors
    first, second = (2 * points * heads * hidden * columns for columns in (32, 1))
    yield Case(
        "fused_mlp",
        f"{points} points, {heads} heads of {hidden} hidden values",
        fused_mlp,
        (
            draw(points, 32),
            draw(heads, hidden, 32) / 6,
            draw(heads, hidden),
            draw(heads, 1, hidden) / 8,
            draw(heads, 1),
        ),
        read=0,
        kept=0,
        # Each layer once; its derivatives by both factors; and of these gradients' squares six more products
        # of the first layer's size and four of the second's. Nothing is computed again.
        flops=(first + second, 3 * (first + second), 9 * first + 7 * second),
    )


class _Made(torch.autograd.Function):
    """x as if an operation had just made it, so that it may be written over, as in the networks.

    Each run finds there what the one before has left.
    """

    @staticmethod
    def forward(_: FunctionCtx, x: Tensor) -> Tensor:
        return x.data

    @staticmethod
    def backward(_: FunctionCtx, grad: Tensor) -> Tensor:
        return grad


def _bytes(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _bytes_around(planes: Tensor, points: Tensor) -> int:
    """Bytes of the pixels that points read: those whose gradient is not zero."""
    leaf = planes.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(_sampled(leaf, points, impl="reference").sum(), leaf)
    return int(gradient.count_nonzero()) * gradient.element_size()


def _sampled(planes: Tensor, points: Tensor, *, impl: str) -> Tensor:
    return triplane_sample(planes, points, projection="orthogonal", box_warp=1.0, impl=impl)


def _along_rays(rays: int, samples: int, device: str) -> Tensor:
    """Points (1, rays samples, 3) as a view reads them: ray by ray, through a cube of side 1."""
    side = int(rays**0.5)
    across = torch.linspace(-0.4, 0.4, side, device=device)
    along = torch.linspace(-0.4, 0.4, samples, device=device)
    return torch.stack(torch.meshgrid(across, across, along, indexing="ij"), dim=-1).view(1, -1, 3)


def _seen(
    density: Tensor, colour: Tensor, part_sdf: Tensor, *, depth: Tensor, impl: str
) -> tuple[Tensor, ...]:
    marched = march_rays(density, depth, colour, part_sdf, marching="published", impl=impl)
    return marched.values, marched.mask


def least_bytes(case: Case, outputs: Sequence[Tensor]) -> tuple[int, ...]:
    """Bytes that each of PASSES must at least move: what it depends on is read once, what it makes written
    once. What lies between counts for nothing, as if it never left the processor.

    A derivative reads the outputs' cotangents and writes the inputs' gradients. The second one reads
    directions as large as these and writes gradients of the cotangents; of a curved operation it reads the
    cotangents as well and writes gradients of the inputs.
    """
    given, made = _bytes(*case.inputs), _bytes(*outputs)
    forward = case.read + made
    backward = forward + made + case.kept + given
    double = backward + given + case.kept + made + (made + given if case.curved else 0)
    return forward, backward, double


def measure(case: Case, repetitions: int, device: str, found: Machine) -> Iterator[Row]:
    """Rows of a case, each against the time that ``found`` needs for its arithmetic or, where it has none to
    speak of, for the least that it moves (more than all of that bound is reached out of caches)."""
    inputs = [x.detach().clone().requires_grad_() for x in case.inputs]
    with torch.no_grad():
        outputs = _tuple(case.run(*case.inputs, impl="reference"))
    cotangents = [torch.randn_like(y).requires_grad_() for y in outputs]
    if case.flops:
        bound, least, speed = "product", case.flops, found.product
    else:
        bound, least, speed = "memory", least_bytes(case, outputs), found.memory
    del outputs

    def forward(impl: str) -> None:
        with torch.no_grad():
            case.run(*inputs, impl=impl)

    def backward(impl: str) -> None:
        torch.autograd.grad(_tuple(case.run(*inputs, impl=impl)), inputs, [c.detach() for c in cotangents])

    def double(impl: str) -> None:
        y = _tuple(case.run(*inputs, impl=impl))
        first = torch.autograd.grad(y, inputs, cotangents, create_graph=True)
        sums = sum(grad.square().sum() for grad in first)
        torch.autograd.grad(sums, [*inputs, *cotangents], allow_unused=True)

    works = (forward, backward, double) if case.twice else (forward, backward)
    for name, work, amount in zip(PASSES, works, least, strict=False):
        both = [partial(work, impl) for impl in ("native", "reference")]
        native, reference = repeat_in_turns(both, repetitions, device)
        peaks = [memory_beside_mb(each, device) for each in both]
        what = f"{case.name}: {name}"
        yield Row(case.operation, what, native, 1, reference, amount / speed, bound, *peaks)


def available(device: str) -> list[str]:
    """Operations that have a native form here; builds them."""
    kind = torch.device(device).type
    return [name for name in extension.NATIVE if kind in extension.loaded(name)]


def _tuple(y: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)
