"""Two-layer perceptrons with softplus and equalised weights: one head, or many heads of one input at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_utils.ops.fused_mlp import fused_mlp


class Perceptron(nn.Module):
    """One head: ``outputs = W2 softplus(W1 x + b1) + b2`` with equalised weights.

    Shapes: x (..., channels), W1 (width, channels), W2 (outputs, width); result (..., outputs).
    """

    def __init__(self, channels: int, width: int, outputs: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.randn(width, channels))
        self.bias1 = nn.Parameter(torch.zeros(width))
        self.weight2 = nn.Parameter(torch.randn(outputs, width))
        self.bias2 = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight1, weight2 = equalised(self.weight1)[None], equalised(self.weight2)[None]
        return fused_mlp(x, weight1, self.bias1[None], weight2, self.bias2[None])


class PartPerceptrons(nn.Module):
    """P heads with one output each, evaluated together.

    Shapes: x (..., channels), W1 (P, width, channels), W2 (P, 1, width); result (..., P).
    """

    def __init__(self, parts: int, channels: int, width: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.randn(parts, width, channels))
        self.bias1 = nn.Parameter(torch.zeros(parts, width))
        self.weight2 = nn.Parameter(torch.randn(parts, 1, width))
        self.bias2 = nn.Parameter(torch.zeros(parts, 1))

    def forward(self, x: Tensor) -> Tensor:
        return fused_mlp(x, equalised(self.weight1), self.bias1, equalised(self.weight2), self.bias2)


def equalised(weight: Tensor) -> Tensor:
    """The weight as it is used: times 1 / sqrt(fan in), the last dimension."""
    return weight * weight.shape[-1] ** -0.5
