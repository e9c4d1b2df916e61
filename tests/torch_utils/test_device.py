"""Devices by name, and the memory that was taken on them."""

from __future__ import annotations

import sys

import pytest
import torch

from dnnlib.errors import UserError
from torch_utils import device
from torch_utils.device import choose_device, peak_memory_mb, reset_peak_memory

_BIG = 64 << 20  # bytes: much more than anything else that a test allocates meanwhile


def test_a_device_that_is_not_there_is_said() -> None:
    assert choose_device("cpu") == "cpu"
    for name in ("cpu:1", "tpu", "cuda:99"):
        with pytest.raises(UserError, match=f"--device {name} cannot be used"):
            choose_device(name)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the whole process")
def test_the_peak_of_a_process_begins_anew() -> None:
    """A tensor that is gone counts no more."""
    reset_peak_memory("cpu")
    before = peak_memory_mb("cpu")
    big = torch.ones(_BIG, dtype=torch.uint8)
    with_it = peak_memory_mb("cpu")
    del big
    assert peak_memory_mb("cpu") > with_it - 4 > before + 50  # known in steps of some pages
    reset_peak_memory("cpu")
    assert peak_memory_mb("cpu") < with_it - 50


def test_where_there_is_no_proc_the_peak_is_that_of_the_process(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(device, "_PROCESS", tmp_path / "absent")
    reset_peak_memory("cpu")
    assert peak_memory_mb("cpu") > 50


@pytest.mark.cuda
def test_the_peak_of_a_gpu_begins_anew() -> None:
    big = torch.ones(_BIG, dtype=torch.uint8, device="cuda")
    with_it = peak_memory_mb("cuda")
    del big
    reset_peak_memory("cuda")
    assert peak_memory_mb("cuda") <= with_it - 63
