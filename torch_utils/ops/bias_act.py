"""Bias, activation, gain and clamp in one operation.

    y = clamp(gain * act(x + bias), -clamp, clamp)

The default gains keep the second moment of a unit-variance input (method section 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from torch_utils import extension


@dataclass(frozen=True)
class Activation:
    """An activation function ``apply(x, alpha)`` and the parameters it has unless the caller gives others."""

    apply: Callable[[Tensor, float], Tensor]
    alpha: float  # slope below zero for lrelu; the others ignore it
    gain: float
    homogeneous: bool = False  # act(g x) = g act(x) for g > 0


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, _: x, 0.0, 1.0, homogeneous=True),
    "relu": Activation(lambda x, _: F.relu(x), 0.0, sqrt(2), homogeneous=True),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu(x, alpha), 0.2, sqrt(2), homogeneous=True),
    "tanh": Activation(lambda x, _: torch.tanh(x), 0.0, 1.0),
    "sigmoid": Activation(lambda x, _: torch.sigmoid(x), 0.0, 1.0),
    "elu": Activation(lambda x, _: F.elu(x), 0.0, 1.0),
    "selu": Activation(lambda x, _: F.selu(x), 0.0, 1.0),
    "softplus": Activation(lambda x, _: F.softplus(x), 0.0, 1.0),
    "swish": Activation(lambda x, _: F.silu(x), 0.0, sqrt(2)),
}

NATIVE_TYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float16, torch.float32, torch.float64)}


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Adds a bias along ``dim``, applies an activation, scales, clamps. Differentiable to second order.

    x: any shape; bias: (x.shape[dim],) or None. ``alpha`` (slope of lrelu below zero) and ``gain`` default to
    the activation's own; ``clamp`` bounds the absolute value of the result. ``impl`` is 'auto', 'reference'
    or 'native'.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act is '{act}'; it must be one of {', '.join(ACTIVATIONS)}")
    spec = ACTIVATIONS[act]
    alpha = spec.alpha if alpha is None else float(alpha)
    gain = spec.gain if gain is None else float(gain)
    if extension.use_native("bias_act", impl, x.device) and x.dtype in NATIVE_TYPES[x.device.type]:
        bias = None if bias is None else bias.to(x.dtype)
        return _Native.apply(
            x, bias, _Settings(dim % x.ndim, list(ACTIVATIONS).index(act), alpha, gain, clamp)
        )
    return _reference(x, bias, dim, act, alpha, gain, clamp)


def _reference(
    x: Tensor, bias: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    """The operation in plain PyTorch."""
    spec = ACTIVATIONS[act]
    if bias is not None:
        bias = bias.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    if spec.homogeneous and gain > 0:
        # gain * act(x + b) = act(gain x + gain b): the gain rides on the addition, one pass over x less each
        # way.
        if bias is not None:
            x = torch.add(bias * gain if gain != 1 else bias, x, alpha=gain)
        elif gain != 1:
            x = x * gain
        y = spec.apply(x, alpha)
    else:
        y = spec.apply(x if bias is None else x + bias, alpha)
        y = y * gain if gain != 1 else y
    return y if clamp is None else y.clamp(-clamp, clamp)


@dataclass(frozen=True)
class _Settings:
    """Arguments of the native operation beside its tensors, in its order."""

    dim: int
    act: int
    alpha: float
    gain: float
    clamp: float | None


def _run_native(
    x: Tensor, bias: Tensor | None, factor: Tensor | None, order: int, settings: _Settings
) -> Tensor:
    """``factor`` times the order-th derivative by x (order 0: the result itself)."""
    s = settings
    return torch.ops.mate3d.bias_act(x, bias, factor, s.dim, s.act, order, s.alpha, s.gain, s.clamp)


def _sum_to_bias(grad: Tensor, dim: int) -> Tensor:
    return grad.sum([i for i in range(grad.ndim) if i != dim])


class _Native(Function):
    """y = f(x + b)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, bias: Tensor | None, settings: _Settings) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.settings = settings
        return _run_native(x, bias, None, 0, settings)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        to_x = _NativeGradient.apply(grad, x, bias, ctx.settings)
        to_bias = _sum_to_bias(to_x, ctx.settings.dim) if ctx.needs_input_grad[1] else None
        return to_x, to_bias, None


class _NativeGradient(Function):
    """g f'(x + b): linear in g, and its derivative by x is g f''(x + b)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, grad: Tensor, x: Tensor, bias: Tensor | None, settings: _Settings
    ) -> Tensor:
        ctx.save_for_backward(grad, x, bias)
        ctx.settings = settings
        return _run_native(x, bias, grad, 1, settings)

    @staticmethod
    @once_differentiable  # second order is as far as R1 and the eikonal loss go
    def backward(ctx: FunctionCtx, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, bias = ctx.saved_tensors
        by_grad, by_x, by_bias, _ = ctx.needs_input_grad
        to_grad = _run_native(x, bias, cotangent, 1, ctx.settings) if by_grad else None
        to_x = to_bias = None
        if (by_x or by_bias) and not list(ACTIVATIONS.values())[ctx.settings.act].homogeneous:
            to_x = _run_native(x, bias, cotangent * grad, 2, ctx.settings)
            to_bias = _sum_to_bias(to_x, ctx.settings.dim) if by_bias else None
        return to_grad, to_x, to_bias, None
