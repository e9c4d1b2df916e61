"""What the tests of CUDA kernels share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from torch_utils import extension


def need_kernels(operation: str) -> None:
    """Skips where nvcc is not installed; fails where it is, and the operation is not available."""
    if "cuda" in extension.loaded(operation):
        return
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None:
        pytest.skip("there is no nvcc")
    extension.build(operation, with_cuda=True)  # raises what the compiler said
    pytest.fail(f"native {operation} was built, but has no kernel for CUDA")


def assert_near(found: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float) -> None:
    """Every number within ``tolerance`` of its tensor's largest one (or of 1, where sums cancel).

    Not relative to the number itself: a sum that happens to be small carries the rounding of its large terms.
    """
    for number, (one, other) in enumerate(zip(found, exact, strict=True)):
        assert one.shape == other.shape
        if one.numel() == 0:
            continue
        one, other = one.detach().double(), other.detach().to(one.device).double()
        wrong = (one - other).abs().masked_fill(one == other, 0).max().item()  # infinite depths are equal
        largest = other[other.isfinite()].abs().max().item() if other.isfinite().any() else 0.0
        assert wrong <= tolerance * max(1.0, largest), f"tensor {number} is off by {wrong:.3g}"


def captured(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]
) -> tuple[torch.cuda.CUDAGraph, Sequence[Tensor]]:
    """A CUDA graph of ``function(*inputs)``, and what each replay writes its results to.

    Capturing fails where anything waits for the GPU, or leaves torch's current stream.
    """
    aside = torch.cuda.Stream()  # as torch asks: what is set up at the first calls must not be captured
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*inputs)
    return graph, results
