"""Gradients through networks in float16, whose smallest numbers are larger than many gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx


class _Scaled(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            ctx.inner = x.detach().requires_grad_()
            ctx.result = function(ctx.inner)
        return ctx.result.detach()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        scale = 1 / grad.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        scale = torch.where(torch.isfinite(scale), scale, 1.0)
        (found,) = torch.autograd.grad(ctx.result, ctx.inner, grad * scale)
        return found / scale, None


def scaled_gradients(function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """``function(x)``, float32 to float32, differentiable once, for a function that computes in ``dtype``.

    In float16 the gradient is brought to a largest value of 1 before it goes back through the function, and
    back to its size behind it. A gradient is linear in what comes in, so the result is the same but for what
    would have been lost: numbers below 6e-8 are zero in float16.
    """
    if dtype != torch.float16 or not (x.requires_grad and torch.is_grad_enabled()):
        return function(x)
    return _Scaled.apply(x, function)
