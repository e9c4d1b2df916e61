"""Times, memory, FLOPs and processes of the benchmark."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from tests.tiny_generator import TINY_GENERATOR
from torch_utils import extension
from torch_utils.device import peak_memory_mb
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from training import recompute
from training.benchmark import measure
from training.benchmark.measure import (
    Spread,
    flops,
    in_own_process,
    machine,
    memory_beside_mb,
    repeat,
    repeat_in_turns,
)
from training.generator import Generator, Want
from training.rendering.cameras import frontal_camera


def test_spread_takes_the_median():
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_repeat_leaves_out_the_first_run():
    calls = []
    spread = repeat(lambda: calls.append(1), 3, "cpu")
    assert len(calls) == 4 and 0 <= spread.lowest <= spread.median <= spread.highest


def test_works_that_are_compared_take_turns():
    calls = []
    spreads = repeat_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3, "cpu")
    assert "".join(calls) == "ab" + 3 * "ab" and len(spreads) == 2


@pytest.mark.parametrize(
    ("of_one", "runs"), [(0.0001, 50), (0.003, 7), (0.02, 1), (5.0, 1)]
)  # seconds; runs that make 20 ms, at most 50
def test_runs_on_a_gpu_share_a_wait(monkeypatch, of_one, runs):
    """A GPU in miniature: work is put in a queue, and done while the CPU waits, which takes 0.1 ms."""
    clock, queue, waits = [0.0], [], []

    def wait(device):
        assert device == "cuda:1"
        waits.append(len(queue))
        clock[0] += sum(queue) + (0.0001 if queue else 0)
        queue.clear()

    monkeypatch.setattr(measure, "_wait", wait)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    spread = repeat(lambda: queue.append(of_one), 3, "cuda:1")
    # before and behind the warm-up, the run that tells how many there are to be, and three repetitions
    assert waits[1::2] == [1, 1, *[runs] * 3] and not any(waits[::2])
    assert spread.lowest == pytest.approx(of_one + 0.0001 / runs) == spread.highest


def test_flops_are_those_of_the_references(monkeypatch):
    seen = []
    assert flops(lambda: (seen.append(dict(extension.AUTO)), torch.ones(2, 3) @ torch.ones(3, 5))) == 2 * 30
    assert seen == [{}] and extension.AUTO


def test_flops_leave_out_what_a_checkpoint_computes_again():
    layers = torch.nn.Sequential(
        torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2), torch.nn.Tanh()
    )

    def step(again):
        recompute.call(layers, torch.ones(7, 3, requires_grad=True), again=again).sum().backward()

    once = 2 * 7 * (3 * 5 + 5 * 2)
    assert flops(lambda: step(again=False)) == flops(lambda: step(again=True)) == 3 * once


def test_flops_of_a_view_do_not_depend_on_the_chunk():
    """With gradients rays are rendered again, chunk by chunk."""
    generator = Generator(TINY_GENERATOR)
    camera = frontal_camera()
    ws = generator.map(torch.randn(1, 8), camera).detach()

    def step(chunk):
        generator.synthesise(ws, camera, deterministic=True, chunk=chunk).image_raw.sum().backward()

    assert flops(lambda: step(16)) == flops(lambda: step(None))


def test_flops_of_normals_do_not_depend_on_the_chunk():
    """A derivative inside of a chunk asks for what that did not keep, and so does the backward pass."""
    generator = Generator(TINY_GENERATOR)
    camera = frontal_camera()
    planes = generator.planes(generator.map(torch.randn(1, 8), camera).detach())
    want = Want(image=False, mask=False, normals=True)

    def step(chunk):
        view = generator.synthesise(None, camera, planes=planes, want=want, deterministic=True, chunk=chunk)
        view.normals.sum().backward(retain_graph=True)

    assert flops(lambda: step(16)) == flops(lambda: step(None))


def test_flops_of_a_filter_are_those_of_a_depthwise_convolution():
    fir = setup_filter((1, 3, 3, 1))
    pixels = 3 * 8 * 8
    assert flops(lambda: upfirdn2d(torch.ones(1, 3, 9, 9), fir, padding=1)) == 2 * 16 * pixels


def test_memory_of_a_run_is_its_largest():
    def work():
        for _ in range(2):
            torch.ones(64 << 18)  # 64 MB, free again before the next

    work()
    torch.ones(256 << 18)  # more, and before: not its
    found = memory_beside_mb(work, "cpu")
    if found is None:
        pytest.skip("the system does not reset its count of a process's largest memory")
    assert 60 < found < 100


def test_the_machine_is_measured():
    found = machine("cpu", 1, shrink=32)
    assert found.product > 0 and found.convolution > 0 and found.memory > 0 and found.threads >= 1


@pytest.mark.timeout(300)  # it imports torch anew
def test_a_process_of_its_own():
    held = torch.ones(512 << 18)  # 512 MB that the other process has nothing to do with
    numbers = in_own_process(_yield_and_fail, threads=1)
    number, largest = next(numbers)  # what came before is not lost
    assert number != os.getpid() and largest < peak_memory_mb("cpu") - 256
    del held
    with pytest.raises(ZeroDivisionError):
        next(numbers)
    with pytest.raises(RuntimeError, match="exit code 3"):
        list(in_own_process(_die, threads=1))


def _yield_and_fail():
    yield os.getpid(), peak_memory_mb("cpu")
    yield 1 // 0


def _die():
    yield os._exit(3)
