"""Perceptrons with one softplus layer, many heads on one input, without ever storing the hidden layer.

    h_mpk = sum_c W1_pkc x_mc + b1_pk        y_mpo = sum_k W2_pok softplus(h_mpk) + b2_po

The hidden layer is P K values per point, by far the largest tensor of a rendering: 120 MB for 100,000 points
and 19 heads of width 16. It is made and used up block by block, and made again for the gradients:

    gradient    a_mpk = sum_o W2_pok g_mpo,  t_mpk = a_mpk s'(h_mpk),  s' the sigmoid, s'' = s' (1 - s')
                x_mc = sum_pk W1_pkc t_mpk,  W1_pkc = sum_m t_mpk x_mc,  b1_pk = sum_m t_mpk,
                W2_pok = sum_m g_mpo s(h_mpk),  b2_po = sum_m g_mpo
    second      the gradient of L = sum_mc v_mc x_mc above, as the eikonal loss needs it:
                with u_mpk = sum_c W1_pkc v_mc it is L = sum g_mpo W2_pok s'(h_mpk) u_mpk, which gives those
                by g and W2; by u it is a s', by h it is a s'' u; and from these two by x, W1 and b1.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from torch_utils import extension

# Most channels and outputs that the kernels have room for; half precision is computed in float32.
NATIVE_TYPES: dict[str, dict[torch.dtype, tuple[float, float]]] = {
    "cpu": {torch.float32: (inf, inf), torch.float64: (inf, inf)},
    "cuda": {
        torch.float16: (64, 32),
        torch.bfloat16: (64, 32),
        torch.float32: (64, 32),
        torch.float64: (32, 16),
    },
}

# Hidden values per block of the reference: on a CPU a block stays in the cache (1 MB of floats), on a GPU it
# fills the device.
_BLOCK_CPU = 1 << 18
_BLOCK_GPU = 1 << 26
_LARGE = 80.0  # exp(80) is finite in float32, and log(1 + exp(80)) = 80


def fused_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, impl: str = "auto"
) -> Tensor:
    """P heads on every point: x (..., C), W1 (P, K, C), b1 (P, K), W2 (P, O, K), b2 (P, O) -> (..., P O).

    Right to second order. ``impl`` is 'auto', 'reference' or 'native'.
    """
    flat = x.reshape(-1, x.shape[-1])  # (M, C)
    parameters = (weight1, bias1, weight2, bias2)
    channels, outputs = NATIVE_TYPES.get(x.device.type, {}).get(x.dtype, (-1, -1))
    fits = x.shape[-1] <= channels and weight2.shape[1] <= outputs
    fits = fits and all(each.dtype == x.dtype for each in parameters)
    if fits and extension.use_native("fused_mlp", impl, x.device, len(flat) * bias1.numel()):
        wide = torch.promote_types(x.dtype, torch.float32)
        y = _outputs(flat.to(wide), *(each.to(wide) for each in parameters)).to(x.dtype)
    elif len(weight1) == 1:  # its hidden layer is small enough to store
        first = functional.linear(flat, weight1[0], bias1[0])
        y = functional.linear(_Softplus.apply(first), weight2[0], bias2[0])
    else:
        y = _Blockwise.apply(flat, *parameters)
    return y.view(*x.shape[:-1], bias2.numel())


def fused_mlp_reference(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """The same in two matrix products, with W2 as a block-diagonal matrix: x (M, C) -> (M, P O)."""
    hidden = torch.addmm(bias1.flatten(), x, weight1.flatten(0, 1).t())  # (M, P K)
    return torch.addmm(bias2.flatten(), functional.softplus(hidden), torch.block_diag(*weight2).t())


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


class _Blockwise(Function):
    """:func:`fused_mlp_reference`, block by block.

    The zeros of the block-diagonal W2 cost P O / C of the first product. Per point, forward:
    2 P K (C + P O) FLOPs and P K softplus. Backward: 6 P K C + 4 P^2 K O FLOPs, P K softplus and P K
    sigmoids. For 19 heads of width 16 on 24 channels: 26 kFLOP and 304 softplus forward, against 2.5 kFLOP
    and 48 softplus of a global head of width 48. Second derivatives fall back to the reference.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight1, bias1, weight2, bias2)
        first, second = weight1.flatten(0, 1), torch.block_diag(*weight2)  # (P K, C), (P O, P K)
        out = x.new_empty(len(x), bias2.numel())
        for some in _blocks(x, bias1.numel()):
            hidden = torch.addmm(bias1.flatten(), x[some], first.t())
            torch.addmm(bias2.flatten(), softplus(hidden), second.t(), out=out[some])
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph: must be differentiable itself
            wanted = [tensor for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
            found = iter(torch.autograd.grad(fused_mlp_reference(*inputs), wanted, grad, create_graph=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        _, *to_weights = ctx.needs_input_grad
        return _blockwise_gradient(*inputs[:4], grad, to_weights=any(to_weights))


def _blockwise_gradient(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, grad: Tensor, to_weights: bool
) -> tuple[Tensor | None, ...]:
    """Gradients by x and, unless they are frozen (as in an inversion), by weights and biases."""
    parts, outputs, width = weight2.shape
    first, second = weight1.flatten(0, 1), torch.block_diag(*weight2)
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
    to_weight2 = to_second.view(parts, outputs, parts, width)[own, :, own]  # the other blocks stand for zeros
    return to_x, to_first.view_as(weight1), to_bias.view_as(bias1), to_weight2, _to_bias2(grad, weight2)


def _to_bias2(grad: Tensor, weight2: Tensor) -> Tensor:
    return grad.sum(0).view(weight2.shape[:2])


def _blocks(x: Tensor, hidden: int) -> list[slice]:
    size = max(64, (_BLOCK_GPU if x.is_cuda else _BLOCK_CPU) // hidden)
    return [slice(start, start + size) for start in range(0, len(x), size)]


# Native operations; ops/src/fused_mlp.cpp


def _fake_outputs(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight2.shape[0] * weight2.shape[1])


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _outputs_backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    _, *weights, by_bias2 = ctx.needs_input_grad
    found = _gradient(grad, *inputs, any(weights))
    found = found if any(weights) else (found[0], None, None, None)
    return *found, _to_bias2(grad, inputs[3]) if by_bias2 else None


def _fake_gradient(
    grad: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, weights: bool
) -> tuple[Tensor, ...]:
    by_weights = [x.new_empty(each.shape if weights else 0) for each in (weight1, bias1, weight2)]
    return x.new_empty(x.shape), *by_weights


def _save_gradient(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.weights = inputs[5]
    ctx.set_materialize_grads(False)  # whether there are any decides how they are differentiated


def _gradient_backward(
    ctx: FunctionCtx, direction: Tensor | None, *by_weights: Tensor | None
) -> tuple[Tensor | None, ...]:
    inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:5]
    if not ctx.weights or all(each is None for each in by_weights):
        if direction is None:
            return (None,) * 6
        by_grad, by_x, *rest = _second(direction, *inputs, any(needed[2:]))
        return by_grad, by_x, *(rest if any(needed[2:]) else (None,) * 3), None
    # A loss on the weights' gradients: no part of this project has one, so the reference is fast enough.
    with torch.enable_grad():
        grad, *parameters = (each.detach().requires_grad_() for each in inputs)
        bias2 = torch.zeros_like(inputs[4][..., 0])
        found = torch.autograd.grad(
            fused_mlp_reference(*parameters, bias2), parameters, grad, create_graph=True
        )
        directions = (direction, *by_weights)
        loss = sum((a * b).sum() for a, b in zip(found, directions, strict=True) if b is not None)
        second = torch.autograd.grad(loss, (grad, *parameters), materialize_grads=True)
    return *second, None


def _fake_second(
    direction: Tensor,
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    weights: bool,
) -> tuple[Tensor, ...]:
    return x.new_empty(grad.shape), *_fake_gradient(grad, x, weight1, bias1, weight2, weights)


_WEIGHTS = "Tensor x, Tensor weight1, Tensor bias1, Tensor weight2"
_outputs = extension.define(
    f"fused_mlp({_WEIGHTS}, Tensor bias2) -> Tensor", _fake_outputs, _outputs_backward, _save
)
_gradient = extension.define(
    f"fused_mlp_gradient(Tensor grad, {_WEIGHTS}, bool weights) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_gradient,
    _gradient_backward,
    _save_gradient,
)
_second = extension.define(
    f"fused_mlp_second(Tensor direction, Tensor grad, {_WEIGHTS}, bool weights) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_second,
)
