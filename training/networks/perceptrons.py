"""Two-layer perceptrons with softplus and equalised weights: one head, or many heads of one input at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional

# Hidden values per block: on a CPU a block stays in the cache (1 MB of floats), on a GPU it fills the device.
_BLOCK_CPU = 1 << 18
_BLOCK_GPU = 1 << 26
_LARGE = 80.0  # exp(80) is finite in float32, and log(1 + exp(80)) = 80


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, within 1e-6; not differentiable.

    On a CPU this is four times as fast as torch's, which took half the time of a rendering.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return functional.softplus(x)
    y = x.clamp_max(_LARGE).exp_().add_(1).log_()
    return torch.maximum(x, y, out=y)  # beyond the clamp it is x


class _Softplus(Function):
    """:func:`softplus` with its derivative, the sigmoid; right to any order."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return softplus(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(x)


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
        hidden = functional.linear(x, equalised(self.weight1), self.bias1)
        return functional.linear(_Softplus.apply(hidden), equalised(self.weight2), self.bias2)


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
        flat = x.reshape(-1, x.shape[-1])  # (M, C)
        weight1, weight2 = equalised(self.weight1), equalised(self.weight2).squeeze(1)
        out = _Heads.apply(flat, weight1, self.bias1, weight2, self.bias2.squeeze(1))
        return out.view(*x.shape[:-1], len(self.bias2))


def equalised(weight: Tensor) -> Tensor:
    """The weight as it is used: times 1 / sqrt(fan in), the last dimension."""
    return weight * weight.shape[-1] ** -0.5


def heads_reference(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """``out_mp = sum_k W2_pk softplus(sum_c W1_pkc x_mc + b1_pk) + b2_p``: every head on every point.

    Shapes: x (M, C), W1 (P, K, C), b1 (P, K), W2 (P, K), b2 (P,); result (M, P).
    """
    hidden = torch.addmm(bias1.flatten(), x, weight1.flatten(0, 1).t())  # (M, P * K)
    return torch.addmm(bias2, functional.softplus(hidden), torch.block_diag(*weight2[:, None]).t())


class _Heads(Function):
    """:func:`heads_reference` without ever holding the hidden layer of all points.

    That layer is P K values per point, by far the largest tensor of a rendering: 120 MB for 100,000 points
    and 19 heads of width 16. It is made and used up block by block, and made again in the backward pass.
    Writing W2 as a block-diagonal matrix makes the second layer one matrix product too; its zeros cost P / C
    of the first.

    Per point, forward: 2 P K (C + P) FLOPs and P K softplus. Backward: 6 P K C + 4 P^2 K FLOPs, P K softplus
    and P K sigmoids. For 19 heads of width 16 on 24 channels: 26 kFLOP and 304 softplus forward, against 2.5
    kFLOP and 48 softplus of a global head of width 48. Second derivatives fall back to the reference.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight1, bias1, weight2, bias2)
        first, second = weight1.flatten(0, 1), torch.block_diag(*weight2[:, None])  # (P K, C), (P, P K)
        out = x.new_empty(len(x), len(bias2))
        for some in _blocks(x, bias1.numel()):
            hidden = torch.addmm(bias1.flatten(), x[some], first.t())
            torch.addmm(bias2, softplus(hidden), second.t(), out=out[some])
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph: must be differentiable itself
            wanted = [tensor for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
            found = iter(torch.autograd.grad(heads_reference(*inputs), wanted, grad, create_graph=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        _, *to_weights = ctx.needs_input_grad
        return _heads_backward(*inputs[:4], grad, to_weights=any(to_weights))


def _heads_backward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, grad: Tensor, to_weights: bool
) -> tuple[Tensor | None, ...]:
    """Gradients by x and, unless they are frozen (as in an inversion), by weights and biases."""
    parts, width, _ = weight1.shape
    first, second = weight1.flatten(0, 1), torch.block_diag(*weight2[:, None])
    to_x, to_first = torch.empty_like(x), torch.zeros_like(first)
    to_bias, to_second = torch.zeros_like(bias1.flatten()), torch.zeros_like(second)
    for some in _blocks(x, len(first)):
        hidden = torch.addmm(bias1.flatten(), x[some], first.t())
        if to_weights:
            to_second.addmm_(grad[some].t(), softplus(hidden))
        to_hidden = (grad[some] @ second).mul_(hidden.sigmoid_())
        torch.mm(to_hidden, first, out=to_x[some])
        if not to_weights:
            continue
        to_first.addmm_(to_hidden.t(), x[some])
        to_bias += to_hidden.sum(0)
    if not to_weights:
        return to_x, None, None, None, None
    own = torch.arange(parts, device=x.device)
    to_weight2 = to_second.view(parts, parts, width)[own, own]  # the other blocks are the zeros of `second`
    return to_x, to_first.view_as(weight1), to_bias.view_as(bias1), to_weight2, grad.sum(0)


def _blocks(x: Tensor, hidden: int) -> list[slice]:
    size = max(64, (_BLOCK_GPU if x.is_cuda else _BLOCK_CPU) // hidden)
    return [slice(start, start + size) for start in range(0, len(x), size)]
