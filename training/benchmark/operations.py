"""Each native operation against its reference: forward, with backward, with double backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_utils import extension
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.fused_mlp import fused_mlp
from torch_utils.ops.march_rays import march_rays
from torch_utils.ops.triplane_sample import channels_last, triplane_sample
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from training.benchmark.measure import Row, repeat

Run = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """An operation on tensors of one size."""

    operation: str
    name: str
    run: Run  # (*inputs, impl=...) -> what it computes
    inputs: tuple[Tensor, ...]  # those that are differentiated
    twice: bool = True  # whether training needs its second derivative


def cases(shrink: int = 1, device: str = "cpu") -> list[Case]:
    """At the sizes of the official networks; sides and points divided by ``shrink``."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    fir = setup_filter((1, 3, 3, 1)).to(device)
    found = []
    for channels, side in ((128, 512), (256, 256), (512, 64)):
        side = max(8, side // shrink)
        found.append(
            Case(
                "bias_act",
                f"leaky ReLU, {channels} x {side} x {side}",
                lambda x, b, impl: bias_act(x, b, act="lrelu", impl=impl),
                (draw(1, channels, side, side), draw(channels)),
            )
        )
    side = max(8, 256 // shrink)
    for name, channels, size, steps in (
        ("blur after up-convolution", 128, side + 1, dict(padding=1, gain=4)),
        ("up-sampling of planes", 96, side // 2, dict(up=2, padding=(2, 1, 2, 1), gain=4)),
        ("up-sampling of pictures", 3, side, dict(up=2, padding=(2, 1, 2, 1), gain=4)),
        ("down-sampling", 128, side, dict(down=2, padding=1)),
    ):
        found.append(
            Case(
                "upfirdn2d",
                f"{name}, {channels} x {size} x {size}",
                lambda x, impl, steps=steps: upfirdn2d(x, fir, impl=impl, **steps),
                (draw(1, channels, size, size),),
            )
        )
    rays, samples = max(4, 4096 // shrink), 96
    depth = torch.rand(rays, samples, device=device)
    found.append(
        Case(
            "march_rays",
            f"{rays} rays, {samples} samples, 32 features, 19 parts",
            lambda *x, impl: _seen(*x, depth=depth, impl=impl),
            (draw(rays, samples), draw(rays, samples, 32), draw(rays, samples, 19) / 10),
            twice=False,
        )
    )
    drawn = draw(1, 3, 32, side, side)
    for name, planes, points in (
        ("points anywhere", drawn, torch.rand(1, rays * 24, 3, device=device) - 0.5),
        ("points along rays, channels last", channels_last(drawn), _along_rays(rays, 24, device)),
    ):
        found.append(
            Case(
                "triplane_sample",
                f"{points.shape[1]} {name}, 32 channels, planes {side} x {side}",
                lambda planes, at, impl: triplane_sample(
                    planes, at, projection="orthogonal", box_warp=1.0, impl=impl
                ),
                (planes, points),
            )
        )
    found.append(
        Case(
            "fused_mlp",
            f"{rays * 24} points, 19 heads of 64 hidden values",
            fused_mlp,
            (draw(rays * 24, 32), draw(19, 64, 32) / 6, draw(19, 64), draw(19, 1, 64) / 8, draw(19, 1)),
        )
    )
    return found


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


def measure(case: Case, repetitions: int, device: str, memory: float) -> Iterator[Row]:
    """Rows of a case. ``memory``: the machine's bytes/s, for the bound of the forward pass, which reads or
    writes everything once."""
    inputs = [x.detach().clone().requires_grad_() for x in case.inputs]
    with torch.no_grad():
        outputs = _tuple(case.run(*case.inputs, impl="reference"))
    cotangents = [torch.randn_like(y).requires_grad_() for y in outputs]
    size = sum(x.numel() * x.element_size() for x in (*case.inputs, *outputs))

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

    passes = {"forward": forward, "with backward": backward}
    if case.twice:
        passes["with double backward"] = double
    for name, work in passes.items():
        reference = repeat(lambda work=work: work("reference"), repetitions, device)
        native = repeat(lambda work=work: work("native"), repetitions, device)
        ideal = size / memory if name == "forward" else None
        bound = "memory" if ideal else ""
        yield Row(case.operation, f"{case.name}: {name}", native, 1, reference, ideal, bound)


def available(device: str) -> list[str]:
    """Operations that have a native form here; builds them."""
    kind = torch.device(device).type
    return [name for name in extension.NATIVE if kind in extension.loaded(name)]


def _tuple(y: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)
