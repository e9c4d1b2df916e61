"""Native operations against their references, and the least that they must do."""

from __future__ import annotations

import pytest
import torch

from torch_utils import extension
from torch_utils.ops.fused_mlp import fused_mlp_reference
from training.benchmark import operations
from training.benchmark.measure import Machine, flops, memory_beside_mb
from training.benchmark.operations import Case, least_bytes

MACHINE = Machine("a CPU", 1, "2.0", product=1e10, convolution=1e10, memory=1e9)


@pytest.mark.timeout(800)  # native operations may have to be built
@pytest.mark.parametrize("number", range(len(list(operations.cases(64)))))
def test_every_operation_can_be_measured(number, monkeypatch):
    case = list(operations.cases(64))[number]
    if case.operation not in operations.available("cpu"):
        pytest.skip(f"native {case.operation} cannot be built here: torch_utils.extension warned why")
    asked, use_native = [], extension.use_native

    def watched(operation, impl, *rest):
        natively = use_native(operation, impl, *rest)
        asked.append((operation, impl, natively))
        return natively

    monkeypatch.setattr(extension, "use_native", watched)
    rows = list(operations.measure(case, 1, "cpu", MACHINE))
    native, reference = (case.operation, "native", True), (case.operation, "reference", False)
    assert set(asked) == {native, reference}  # neither stood in for the other
    assert set(asked[1::2]) == {native} and set(asked[2::2]) == {reference}  # in turns, after the outputs
    passes = operations.PASSES if case.twice else operations.PASSES[:2]
    assert [row.name.rpartition(": ")[2] for row in rows] == list(passes)
    assert all(row.gain > 0 and row.fraction > 0 for row in rows)
    assert {row.bound for row in rows} == {"product" if case.operation == "fused_mlp" else "memory"}
    assert all(row.ideal < more.ideal for row, more in zip(rows, rows[1:], strict=False))
    if memory_beside_mb(lambda: None, "cpu") is not None:
        assert all(row.peak_mb >= 0 and row.reference_peak_mb >= 0 for row in rows)


def test_every_native_operation_has_a_case():
    assert {case.operation for case in operations.cases(64)} == extension.NATIVE.keys()


def test_the_least_bytes_by_hand():
    """A linear operation of 10 numbers to 20, and one like it whose gradients depend on 5 more numbers."""
    x, y = torch.zeros(10), torch.zeros(20)
    linear = Case("a", "b", lambda x, impl: y, (x,), read=40, kept=0, curved=False)
    # forward x, y; backward the cotangent and the gradient; second the direction and what it becomes
    assert least_bytes(linear, [y]) == (40 + 80, 2 * (40 + 80), 3 * (40 + 80))
    curved = Case("a", "b", lambda x, impl: y, (x,), read=60, kept=60)
    # second also reads the cotangent and what the gradients depend on, and writes a gradient of x
    assert least_bytes(curved, [y]) == (60 + 80, 2 * (60 + 80) + 40, 3 * (60 + 80) + 40 + 40 + 80 + 40)


def test_pixels_far_from_all_points_are_not_read():
    planes, centre = torch.randn(1, 3, 2, 8, 8), torch.zeros(1, 1, 3)
    # the centre lies between four pixels of two channels, on each plane
    assert operations._bytes_around(planes, centre) == 3 * 4 * 2 * 4


def test_flops_of_perceptrons_are_those_of_the_reference_that_stores_its_hidden_layer():
    (case,) = (case for case in operations.cases(64) if case.operation == "fused_mlp")
    inputs = [x.requires_grad_() for x in case.inputs]

    def step(passes):
        y = fused_mlp_reference(*inputs)
        cotangent = torch.ones_like(y, requires_grad=True)
        if passes > 1:
            first = torch.autograd.grad(y, inputs, cotangent, create_graph=passes > 2)
        if passes > 2:
            sums = sum(each.square().sum() for each in first)
            torch.autograd.grad(sums, [*inputs, cotangent], allow_unused=True)

    counted = [flops(lambda passes=passes: step(passes)) for passes in (1, 2, 3)]
    assert counted == list(case.flops)
