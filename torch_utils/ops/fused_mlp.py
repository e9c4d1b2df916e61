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
                Directions of the weights' gradients only widen u and exchange W2: see the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from torch_utils import extension
from torch_utils.ops.types import of_one_type, undisturbed

# Most channels and outputs; the kernels have room for one channel more, for the second derivative by weights.
# Half precision is computed in float32.
NATIVE_TYPES: dict[str, dict[torch.dtype, tuple[float, float]]] = {
    "cpu": {torch.float32: (inf, inf), torch.float64: (inf, inf)},
    "cuda": {
        torch.float16: (63, 32),
        torch.bfloat16: (63, 32),
        torch.float32: (63, 32),
        torch.float64: (31, 16),
    },
}

# Hidden values per block of the reference: on a CPU a block stays in the cache (1 MB of floats), on a GPU it
# fills the device.
_BLOCK_CPU = 1 << 18
_BLOCK_GPU = 1 << 26
# Hidden values per point from which a GPU's second derivatives are products of matrices, block by block.
# Measured where 19 heads have 64 each: 10.7 ms instead of 25.9; a single head keeps its kernel, not compared.
_PRODUCTS_FROM = 256
_LARGE = 80.0  # exp(80) is finite in float32, and log(1 + exp(80)) = 80


def fused_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, impl: str = "auto"
) -> Tensor:
    """P heads on every point: x (..., C), W1 (P, K, C), b1 (P, K), W2 (P, O, K), b2 (P, O) -> (..., P O).

    Right to second order. Of tensors of several types the widest counts. ``impl`` is 'auto', 'reference' or
    'native'.
    """
    with undisturbed(x):
        return _fused_mlp(x, weight1, bias1, weight2, bias2, impl)


def _fused_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, impl: str
) -> Tensor:
    x, weight1, bias1, weight2, bias2 = of_one_type(x, weight1, bias1, weight2, bias2)
    flat = x.reshape(-1, x.shape[-1])  # (M, C)
    parameters = (weight1, bias1, weight2, bias2)
    channels, outputs = NATIVE_TYPES.get(x.device.type, {}).get(x.dtype, (-1, -1))
    fits = x.shape[-1] <= channels and weight2.shape[1] <= outputs and bias1.numel() > 0
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
    """The same in a product for all heads' hidden layers and one for each head: x (M, C) -> (M, P O)."""
    hidden = torch.addmm(bias1.flatten(), x, weight1.flatten(0, 1).t())  # (M, P K)
    return _second_layer(functional.softplus(hidden), weight2, bias2)


def _second_layer(values: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    y = torch.baddbmm(bias2[:, None], _of_heads(values, len(weight2)), weight2.mT)  # (P, M, O)
    return y.transpose(0, 1).flatten(1)


def _of_heads(x: Tensor, heads: int) -> Tensor:
    """(M, P N) -> (P, M, N), a view."""
    return x.view(len(x), heads, x.shape[1] // heads).transpose(0, 1)


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

    Per point, forward: 2 P K (C + O) FLOPs and P K softplus. Backward: 6 P K C + 4 P K O FLOPs, P K softplus
    and P K sigmoids. For 19 heads of width 16 on 24 channels: 15 kFLOP and 304 softplus forward, against 2.5
    kFLOP and 48 softplus of a global head of width 48. Second derivatives fall back to the reference.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight1, bias1, weight2, bias2)
        first = weight1.flatten(0, 1)  # (P K, C)
        out = x.new_empty(len(x), bias2.numel())
        for some in _blocks(x, bias1.numel()):
            hidden = torch.addmm(bias1.flatten(), x[some], first.t())
            out[some] = _second_layer(softplus(hidden), weight2, bias2)
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
    """Gradients by x and, unless they are frozen (as in an inversion), by weights and biases.

    Sums are written to ``out`` because torch counts no FLOPs of ``addmm_``.
    """
    heads, first = len(weight2), weight1.flatten(0, 1)
    to_x, to_first = torch.empty_like(x), torch.zeros_like(first)
    to_bias, to_weight2 = torch.zeros_like(bias1.flatten()), torch.zeros_like(weight2)
    for some in _blocks(x, len(first)):
        hidden = torch.addmm(bias1.flatten(), x[some], first.t())
        by_output = _of_heads(grad[some], heads)  # (P, M, O)
        if to_weights:
            values = _of_heads(softplus(hidden), heads)
            torch.baddbmm(to_weight2, by_output.mT, values, out=to_weight2)
        to_hidden = torch.empty_like(hidden)
        torch.bmm(by_output, weight2, out=_of_heads(to_hidden, heads))
        to_hidden.mul_(hidden.sigmoid_())
        torch.mm(to_hidden, first, out=to_x[some])
        if not to_weights:
            continue
        torch.addmm(to_first, to_hidden.t(), x[some], out=to_first)
        to_bias += to_hidden.sum(0)
    if not to_weights:
        return to_x, None, None, None, None
    return to_x, to_first.view_as(weight1), to_bias.view_as(bias1), to_weight2, _to_bias2(grad, weight2)


def _blockwise_second(
    directions: tuple[Tensor | None, ...],
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    weights: bool,
) -> tuple[Tensor | None, ...]:
    """The gradient of L = sum g_mpo (W2_pok s'(h_mpk) u_mpk + V2_pok s(h_mpk)) with ``u = W1 v + V1 x + v1``,
    of the directions (v, V1, v1, V2), any of them None for 0: by grad, x and, with ``weights``, W1, b1, W2.

    Products of matrices throughout, 2 P K (5 C + 3 O) FLOPs a point with v alone.
    """
    heads, first, bias = len(weight2), weight1.flatten(0, 1), bias1.flatten()
    direction, direction1, direction_bias, direction2 = directions
    further = None if direction1 is None else direction1.flatten(0, 1)
    to_grad, to_x = torch.empty_like(grad), torch.zeros_like(x)
    to_first, to_bias, to_weight2 = torch.zeros_like(first), torch.zeros_like(bias), torch.zeros_like(weight2)
    for some in _blocks(x, len(first)):
        points, by_output = x[some], _of_heads(grad[some], heads)  # (M, C), (P, M, O)
        hidden = torch.addmm(bias, points, first.t())
        slope = hidden.sigmoid()
        to_output = 0
        to_hidden = torch.zeros_like(hidden)
        if direction2 is not None:
            to_output = torch.bmm(_of_heads(softplus(hidden), heads), direction2.mT)
            torch.bmm(by_output, direction2, out=_of_heads(to_hidden, heads))
            to_hidden.mul_(slope)
        u = torch.zeros_like(hidden) if direction_bias is None else direction_bias.flatten().expand_as(hidden)
        for left, right in ((direction, first), (points, further)):
            if left is not None and right is not None:
                u = torch.addmm(u, left if left is points else left[some], right.t())
        moved = _of_heads(slope * u, heads)  # (P, M, K), as the values of the hidden layer move
        to_grad[some] = (torch.bmm(moved, weight2.mT) + to_output).transpose(0, 1).flatten(1)
        to_u = torch.empty_like(hidden)
        torch.bmm(by_output, weight2, out=_of_heads(to_u, heads))
        to_u.mul_(slope)
        to_hidden.addcmul_(u.mul(slope.neg_().add_(1)), to_u)  # s'' = s' (1 - s')
        torch.mm(to_hidden, first, out=to_x[some])
        if further is not None:
            to_x[some] += to_u @ further
        if not weights:
            continue
        to_first.addmm_(to_hidden.t(), points)
        if direction is not None:
            to_first.addmm_(to_u.t(), direction[some])
        to_bias += to_hidden.sum(0)
        to_weight2.baddbmm_(by_output.mT, moved)
    if not weights:
        return to_grad, to_x, None, None, None
    return to_grad, to_x, to_first.view_as(weight1), to_bias.view_as(bias1), to_weight2


def _prefers_products(x: Tensor, hidden: int) -> bool:
    return x.is_cuda and hidden >= _PRODUCTS_FROM


class _SecondByProducts(Function):
    """:func:`_blockwise_second` as the last derivative there is."""

    @staticmethod
    def forward(ctx: FunctionCtx, weights: bool, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return _blockwise_second(tensors[:4], *tensors[4:], weights)

    @staticmethod
    def backward(ctx: FunctionCtx, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("fused_mlp is not differentiable a third time")


def _to_bias2(grad: Tensor, weight2: Tensor) -> Tensor:
    return grad.sum(0).view(weight2.shape[:2])


def _blocks(x: Tensor, hidden: int) -> list[slice]:
    size = max(64, (_BLOCK_GPU if x.is_cuda else _BLOCK_CPU) // max(1, hidden))
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
    ctx: FunctionCtx, direction: Tensor | None, *directions: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradient of L, the sum of each direction times its gradient.

    L is linear in the directions v of x, V1 of W1, v1 of b1 and V2 of W2: what it gives is added up from
    parts for some of them each.
    """
    inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:5]
    weights = any(needed[2:])
    direction1, direction_bias, direction2 = directions = directions if ctx.weights else (None,) * 3
    if _prefers_products(inputs[0], inputs[3].numel()):
        found = _SecondByProducts.apply(weights, direction, *directions, *inputs)
        return *(each if wanted else None for each, wanted in zip(found, needed, strict=True)), None
    parts = []  # of the derivatives by grad, x, W1, b1 and W2
    if direction1 is not None or direction_bias is not None:
        parts += _second_of_layer(direction, direction1, direction_bias, *inputs, weights)
    elif direction is not None:
        parts.append(_second(direction, *inputs, weights))
    if direction2 is not None:  # sum g_mpo V2_pok s(h_mpk): what the outputs are with V2 in place of W2
        grad, *layer, weight2 = inputs
        values = _outputs(*layer, direction2, weight2.new_zeros(weight2.shape[:2]))
        parts.append((values, *_gradient(grad, *layer, direction2, weights)[:3], None))
    found: list[Tensor | None] = [None] * 6
    for i in (i for i in range(5) if needed[i]):
        for part in parts:
            if part[i] is not None:
                found[i] = part[i] if found[i] is None else found[i] + part[i]
    return tuple(found)


def _second_of_layer(
    direction: Tensor | None,
    direction1: Tensor | None,
    direction_bias: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    weights: bool,
) -> Iterator[tuple[Tensor | None, ...]]:
    """Parts of the gradient of L = sum g_mpo W2_pok s'(h_mpk) u_mpk with ``u = W1 v + V1 x + v1``.

    That u is one of a wider layer, whose further channels are zero in its points, so that h stays what it is:

        weights (W1 V1 v1),  points (x 0 0),  direction (v x 1)

    Its ``_second`` lacks one thing, what x has through u: sum_pk V1_pkc t_mpk. These are the further channels
    of the gradient by its points. There are as many of them at a time as the kernels have room for.
    """
    channels = x.shape[1]
    direction, direction1, direction_bias = (
        torch.zeros_like(like) if given is None else given
        for given, like in ((direction, x), (direction1, weight1), (direction_bias, bias1))
    )
    further = torch.cat([direction1, direction_bias[..., None]], dim=-1)  # (P, K, C + 1)
    ones = x.new_ones(len(x), 1)
    room = min(NATIVE_TYPES[x.device.type][x.dtype][0] + 1 - channels, channels + 1)
    through_u = []
    for weight, values in zip(further.split(room, -1), torch.cat([x, ones], -1).split(room, -1), strict=True):
        layer = functional.pad(x, (0, values.shape[1])), torch.cat([weight1, weight], dim=-1), bias1, weight2
        by_grad, by_x, by_weight1, *rest = _second(torch.cat([direction, values], -1), grad, *layer, weights)
        yield by_grad, by_x[:, :channels], by_weight1[..., :channels] if weights else None, *rest
        through_u.append(_gradient(grad, *layer, False)[0][:, channels:])
        direction = torch.zeros_like(direction)  # it has been counted
    yield None, torch.cat(through_u, dim=-1)[:, :channels], None, None, None


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
