import pytest
import torch

from torch_utils.ops import fused_mlp
from training.networks.perceptrons import PartPerceptrons, Perceptron


def naive_parts(heads: PartPerceptrons, x):
    gain1, gain2 = heads.weight1.shape[-1] ** -0.5, heads.weight2.shape[-1] ** -0.5
    each = []
    for w1, b1, w2, b2 in zip(heads.weight1, heads.bias1, heads.weight2, heads.bias2, strict=True):
        hidden = torch.nn.functional.softplus(x @ (w1 * gain1).T + b1)
        each.append(hidden @ (w2 * gain2).T + b2)
    return torch.cat(each, dim=-1)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(fused_mlp, "_BLOCK_CPU", 1)  # blocks of 64 points, their smallest size


def test_one_head_by_hand():
    head = Perceptron(channels=1, width=4, outputs=1)
    with torch.no_grad():
        head.weight1.fill_(3.0), head.bias1.fill_(1.0), head.weight2.fill_(2.0), head.bias2.fill_(0.5)
    # four equal hidden units; the gains are 1 / sqrt(1) and 1 / sqrt(4)
    want = 4 * torch.nn.functional.softplus(torch.tensor([[3.0 * 0.2 + 1.0]])) * 2.0 / 2 + 0.5
    torch.testing.assert_close(head(torch.tensor([[0.2]])), want)


def test_one_head_is_right_to_second_order():
    head = Perceptron(channels=2, width=3, outputs=2).double()
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, (x,)) and torch.autograd.gradgradcheck(head, (x,))


@pytest.mark.parametrize("points", [0, 11, 64, 150])
def test_batched_parts_equal_a_loop_over_heads(points, small_blocks):
    heads = PartPerceptrons(parts=5, channels=7, width=3).double()
    torch.nn.init.normal_(heads.bias1), torch.nn.init.normal_(heads.bias2)
    x = torch.randn(2, points, 7, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, points, 5, dtype=torch.float64)
    inputs = (x, *heads.parameters())
    got, want = heads(x), naive_parts(heads, x)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, inputs, cotangent), torch.autograd.grad(want, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_frozen_heads_still_pass_the_gradient_on(small_blocks):
    heads = PartPerceptrons(parts=3, channels=4, width=2).requires_grad_(False)
    x = torch.randn(100, 4, requires_grad=True)
    heads(x).sum().backward()
    frozen, x.grad = x.grad, None
    naive_parts(heads, x).sum().backward()
    torch.testing.assert_close(frozen, x.grad)
    assert heads.weight1.grad is None


def test_parts_are_right_to_second_order(small_blocks):
    heads = PartPerceptrons(parts=2, channels=3, width=4).double()
    x = torch.randn(70, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, *heads.parameters())

    def of(x, *parameters):
        names = [name for name, _ in heads.named_parameters()]
        return torch.func.functional_call(heads, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(of, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(of, inputs, fast_mode=True)
