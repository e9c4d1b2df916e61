"""Gradients through networks in float16, whose smallest numbers are larger than many gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx


class _Scaled(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[1:]
        ctx.save_for_backward(*inputs)
        ctx.inner = [x.detach().requires_grad_(w) for x, w in zip(inputs, wanted, strict=True)]
        with torch.enable_grad():
            ctx.result = function(*ctx.inner)
        return ctx.result.detach()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = 1 / grad.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        scale = torch.where(torch.isfinite(scale), scale, 1.0)
        wanted = [x for x in ctx.inner if x.requires_grad]
        found = iter(torch.autograd.grad(ctx.result, wanted, grad * scale))
        gradients = [next(found) / scale if x.requires_grad else None for x in ctx.inner]
        if torch.is_grad_enabled():  # a second derivative would be zero without a word
            gradients = [None if g is None else _Last.apply(g, *ctx.saved_tensors) for g in gradients]
        return None, *gradients


class _Last(Function):
    """A gradient of some inputs that cannot be differentiated by them."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: FunctionCtx, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "gradients in float16 are differentiable once: second derivatives need float32"
        )


def scaled_gradients(function: Callable[..., Tensor], dtype: torch.dtype, *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, float32 to float32, differentiable once and by the inputs alone, for a function
    that computes in ``dtype``.

    In float16 the gradient is brought to a largest value of 1 before it goes back through the function, and
    back to its size behind it. A gradient is linear in what comes in, so the result is the same but for what
    would have been lost: numbers below 6e-8 are zero in float16.
    """
    if dtype != torch.float16 or not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        return function(*inputs)
    return _Scaled.apply(function, *inputs)
