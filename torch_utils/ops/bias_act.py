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
from torch.autograd.function import FunctionCtx
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

NATIVE_TYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    overwrite: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Adds a bias along ``dim``, applies an activation, scales, clamps. Differentiable to second order.

    x: any shape; bias: (x.shape[dim],) or None. ``alpha`` (slope of lrelu below zero) and ``gain`` default to
    the activation's own; ``clamp`` bounds the absolute value of the result. ``overwrite``: neither the caller
    nor the gradient of what made x needs it any more (a convolution's and a sum's do not; torch raises where
    one does), so its memory may take the result, which saves a large tensor's page faults. ``impl`` is
    'auto', 'reference' or 'native'.
    """
    spec = ACTIVATIONS.get(act)
    if spec is None:
        raise ValueError(f"act is '{act}'; it must be one of {', '.join(ACTIVATIONS)}")
    alpha = spec.alpha if alpha is None else float(alpha)
    gain = spec.gain if gain is None else float(gain)
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp is {clamp}: it bounds the absolute value, so it is not negative")
    if bias is not None and not -x.ndim <= dim < x.ndim:
        raise IndexError(f"dim is {dim}, of a tensor with {x.ndim} dimensions")
    supported = x.dtype in NATIVE_TYPES.get(x.device.type, ()) and x.ndim > 0
    settings = (dim % x.ndim if x.ndim else 0, _NUMBERS[act], alpha, gain, clamp)
    overwrite = overwrite and _dense(x)
    differentiated = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    if overwrite and differentiated:
        # The gradient is read off the value, and torch lets an operation write over what another one made.
        # The compiler plans memory itself and could not follow any of this, so it is asked about first.
        overwrite = (
            not torch.compiler.is_compiling()
            and x.grad_fn is not None
            and not x._is_view()
            and _told_by_value(*settings[1:4])
        )
    # An addition alone is one pass already, and its gradient is the very one that comes in.
    if act == "linear" and gain == 1 and clamp is None and impl == "auto":
        if overwrite and bias is not None:
            return x.add_(_along(bias.to(x.dtype), dim % x.ndim, x))
        impl = "reference"
    if supported and extension.use_native("bias_act", impl, x.device, x.numel()):
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        if overwrite and differentiated:
            return _Overwriting.apply(x, bias, *settings)
        if overwrite:
            _value_in_place(x, bias, *settings)
            return x
        return _value(x, bias, *settings)
    return _reference(x, bias, dim, act, alpha, gain, clamp)


def _reference(
    x: Tensor, bias: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    """The operation in plain PyTorch."""
    spec = ACTIVATIONS[act]
    if bias is not None:
        bias = _along(bias.to(x.dtype), dim % x.ndim, x)
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


# ---- The native operation: schemas, shapes and derivatives of what ops/src/bias_act.cpp computes.

# How the kernels know activations, and which of these are homogeneous.
_NUMBERS = {act: number for number, act in enumerate(ACTIVATIONS)}
_HOMOGENEOUS = tuple(spec.homogeneous for spec in ACTIVATIONS.values())
# What `wanted` may be; the last reads the derivative of a homogeneous activation off its value.
_FIRST, _SECOND, _FIRST_OF_VALUE = 1, 2, 3


def _told_by_value(act: int, alpha: float, gain: float) -> bool:
    """Whether the value has the sign of the activation's input. Then the input, which nothing else may need,
    is not kept for the backward pass: the value is, which the next layer keeps anyway."""
    return _HOMOGENEOUS[act] and gain > 0 and alpha >= 0


def _keep_for_value(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    x, bias, *settings = inputs
    _, act, alpha, gain, _ = settings
    ctx.from_value = _told_by_value(act, alpha, gain)
    ctx.save_for_backward(*((output, None) if ctx.from_value else (x, bias)))
    ctx.settings = settings


def _value_backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    dim, act, alpha, gain, clamp = ctx.settings
    by_bias = ctx.needs_input_grad[1]
    wanted = _FIRST_OF_VALUE if ctx.from_value else _FIRST
    to_x, to_bias = _gradient(grad, None, *ctx.saved_tensors, dim, act, wanted, alpha, gain, clamp, by_bias)
    return to_x, to_bias if by_bias else None, None, None, None, None, None


class _Overwriting(torch.autograd.Function):
    """``_value_in_place`` and its gradient: torch.library gives none to what changes its arguments."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, bias: Tensor | None, *settings: int | float | None) -> Tensor:
        _value_in_place(x, bias, *settings)
        ctx.mark_dirty(x)
        _keep_for_value(ctx, (None, None, *settings), x)
        return x

    backward = staticmethod(_value_backward)


def _keep_for_gradient(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    factor, spread, x, bias, *settings = inputs
    ctx.save_for_backward(factor, spread, x, bias)
    ctx.settings = settings
    ctx.set_materialize_grads(False)


def _gradient_backward(
    ctx: FunctionCtx, by_element: Tensor | None, by_sum: Tensor | None
) -> tuple[Tensor | None, ...]:
    """f'(x + b) (g + s) is linear in g and s; its derivative by x is (g + s) f''(x + b)."""
    factor, spread, x, bias = ctx.saved_tensors
    dim, act, wanted, alpha, gain, clamp, summed = ctx.settings
    by_factor, by_spread, by_x, by_bias = ctx.needs_input_grad[:4]
    if not summed:
        by_sum = None
    if by_element is None and by_sum is None:
        return (None,) * 11
    if wanted == _SECOND:
        raise NotImplementedError("bias_act is differentiable twice: R1 and the eikonal loss need no more")
    if by_element is None:
        by_element, by_sum = _along(by_sum, dim, x).expand_as(x), None
    to_factor = to_spread = to_x = to_bias = None
    if by_factor or by_spread:
        settings = (dim, act, wanted, alpha, gain, clamp, by_spread)
        to_factor, to_spread = _gradient(by_element, by_sum, x, bias, *settings)
    if (by_x or by_bias) and not _HOMOGENEOUS[act]:
        cotangent = by_element if by_sum is None else by_element + _along(by_sum, dim, x)
        scaled = cotangent * (factor if spread is None else factor + _along(spread, dim, x))
        to_x, to_bias = _gradient(scaled, None, x, bias, dim, act, _SECOND, alpha, gain, clamp, by_bias)
    return to_factor, to_spread if by_spread else None, to_x, to_bias if by_bias else None, *(None,) * 7


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _along(by_channel: Tensor, dim: int, x: Tensor) -> Tensor:
    """A number per channel, shaped so that it broadcasts against x."""
    return by_channel.reshape([-1 if i == dim else 1 for i in range(x.ndim)])


_SETTINGS = "float alpha, float gain, float? clamp"
_value = extension.define(
    f"bias_act(Tensor x, Tensor? bias, int dim, int act, {_SETTINGS}) -> Tensor",
    lambda x, *_: torch.empty_like(x),
    _value_backward,
    _keep_for_value,
)
_value_in_place = extension.define(
    f"bias_act_(Tensor(a!) x, Tensor? bias, int dim, int act, {_SETTINGS}) -> ()", lambda x, *_: None
)
# `wanted`'s derivative times the sum of factor and spread, of which the second has a number per channel; with
# `sum`, also the sum of that over all but `dim`.
_gradient = extension.define(
    "bias_act_gradient(Tensor factor, Tensor? spread, Tensor x, Tensor? bias, int dim, int act, int wanted, "
    f"{_SETTINGS}, bool sum) -> (Tensor, Tensor)",
    lambda factor, spread, x, bias, dim, *settings: (
        torch.empty_like(x),
        x.new_empty(x.shape[dim] if settings[-1] else 0),
    ),
    _gradient_backward,
    _keep_for_gradient,
)
