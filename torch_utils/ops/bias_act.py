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
from torch.nn import functional as F


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
    spec = ACTIVATIONS[act]
    alpha = spec.alpha if alpha is None else float(alpha)
    gain = spec.gain if gain is None else float(gain)
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
