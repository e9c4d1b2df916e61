"""Times with their spread, the machine's own speed, peak memory."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeVar
from unittest.mock import patch

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from torch_utils import extension
from torch_utils.device import peak_memory_mb, reset_peak_memory
from training import recompute

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Seconds of several repetitions."""

    median: float
    lowest: float
    highest: float

    @staticmethod
    def of(seconds: list[float]) -> Spread:
        return Spread(statistics.median(seconds), min(seconds), max(seconds))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    group: str
    name: str
    seconds: Spread
    items: int = 1  # pictures that were made or trained on
    reference: Spread | None = None  # the same by the reference operation
    ideal: float | None = None  # seconds at the machine's own speed
    bound: str = ""  # what that speed is: a field of Machine, 'product', 'convolution' or 'memory'
    # Largest memory, MiB: of an operation what a run takes beside its inputs, of other work the process's.
    peak_mb: float | None = None
    reference_peak_mb: float | None = None

    def to_dict(self) -> dict:
        return asdict(self) | {"fraction": self.fraction, "gain": self.gain}

    @property
    def fraction(self) -> float | None:
        """Share of the bound that is reached."""
        return None if self.ideal is None else self.ideal / self.seconds.median

    @property
    def gain(self) -> float | None:
        """Times as fast as the reference."""
        return None if self.reference is None else self.reference.median / self.seconds.median


@dataclass(frozen=True)
class Machine:
    """What this machine reaches in the simplest operations: single precision, the threads of this run."""

    device: str
    threads: int
    torch: str
    product: float  # FLOP/s of a product of two square matrices, of side SIZES
    convolution: float  # FLOP/s of a 3 x 3 convolution, channels-last, 128 channels, of side SIZES / 16
    memory: float  # bytes/s read and written by adding two large tensors into a third
    # Whether TensorFloat-32, 11 bits instead of 24, was allowed: by default in a GPU's convolutions only.
    tf32_product: bool = False
    tf32_convolution: bool = False


SIZES = {"cpu": 2048, "cuda": 4096}  # of the machine's own measurement: enough to fill it

# On a GPU a run ends long before the CPU hears of it: as many runs as take this long share one such wait.
_SECONDS_BETWEEN_WAITS = 0.02
_MOST_RUNS = 50


def repeat(work: Callable[[], object], repetitions: int, device: str) -> Spread:
    """Wall-clock seconds of one run of ``work``, after one that does not count.

    On a GPU each repetition is the mean of several runs, one directly behind the other.
    """
    (spread,) = repeat_in_turns([work], repetitions, device)
    return spread


def repeat_in_turns(works: Sequence[Callable[[], object]], repetitions: int, device: str) -> list[Spread]:
    """:func:`repeat` of works that are compared: first one repetition of each, then the next of each, so that
    a machine that grows faster or slower meanwhile does so for all of them."""
    for work in works:
        _seconds(work, 1, device)
    runs = [_runs_of_a_repetition(work, device) for work in works]
    seconds = [
        [_seconds(work, many, device) for work, many in zip(works, runs, strict=True)]
        for _ in range(repetitions)
    ]
    return [Spread.of(list(of_work)) for of_work in zip(*seconds, strict=True)]


def _runs_of_a_repetition(work: Callable[[], object], device: str) -> int:
    if not device.startswith("cuda"):
        return 1
    return min(max(math.ceil(_SECONDS_BETWEEN_WAITS / _seconds(work, 1, device)), 1), _MOST_RUNS)


def _seconds(work: Callable[[], object], runs: int, device: str) -> float:
    """Seconds of a run, from the mean of ``runs``."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(runs):
        work()
    _wait(device)
    return (time.perf_counter() - start) / runs


def in_own_process(
    function: Callable[..., Iterable[T]], *arguments: object, threads: int | None
) -> Iterator[T]:
    """What it yields in a new process, whose peak memory is that of this call alone; each as soon as it is
    there, so that what stops a long measurement leaves what was measured before."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(theirs, function, arguments, threads), daemon=True)
    process.start()
    theirs.close()  # so that the death of the process shows as the end of the pipe
    try:
        while (sent := ours.recv()) is not None:
            if isinstance(sent, Exception):
                raise sent
            yield sent
    except EOFError:
        process.join()
        raise RuntimeError(f"the measuring process ended with exit code {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()


def _send_all(
    pipe: Connection, function: Callable[..., Iterable], arguments: tuple, threads: int | None
) -> None:
    start_process(threads)
    try:
        for each in function(*arguments):
            pipe.send(each)
        pipe.send(None)
    except Exception as error:
        pipe.send(error)


def start_process(threads: int | None) -> None:
    """Makes a process measure what every other would."""
    torch.manual_seed(0)
    if threads is not None:
        torch.set_num_threads(threads)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def memory_beside_mb(work: Callable[[], object], device: str) -> float | None:
    """Largest memory of a run of ``work``, MiB, beside what is there before it; None where the system does
    not tell. ``work`` must have run before: a first run also loads libraries and starts threads.

    Of a process it is known in steps of some pages, so less than a MiB means nothing.
    """
    _wait(device)
    _give_freed_memory_back()
    if not reset_peak_memory(device):
        return None
    before = peak_memory_mb(device)
    work()
    _wait(device)
    return max(0.0, peak_memory_mb(device) - before)  # counted in steps, it may seem to fall


def _give_freed_memory_back() -> None:
    """Freed blocks that the C library keeps would be taken again without showing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others keep less
    if trim is not None:
        trim(0)


@torch.no_grad()
def machine(device: str, repetitions: int, *, shrink: int = 1) -> Machine:
    """Measures it. ``shrink`` divides all sizes (for tests)."""
    on_gpu = device.startswith("cuda")
    size = SIZES["cuda" if on_gpu else "cpu"] // shrink
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    product = repeat(lambda: a @ b, repetitions, device).lowest
    side = max(8, size // 16)
    x = torch.randn(1, 128, side, side, device=device).to(memory_format=torch.channels_last)
    w = torch.randn(128, 128, 3, 3, device=device).to(memory_format=torch.channels_last)
    convolution = repeat(lambda: F.conv2d(x, w, padding=1), repetitions, device).lowest
    big = [torch.randn(8 * size * size // 2, device=device) for _ in range(3)]
    memory = repeat(lambda: torch.add(big[0], big[1], out=big[2]), repetitions, device).lowest
    name = torch.cuda.get_device_name(device) if on_gpu else _processor()
    return Machine(
        device=name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        product=2 * size**3 / product,
        convolution=2 * 9 * 128 * 128 * side * side / convolution,
        memory=3 * 4 * len(big[0]) / memory,
        tf32_product=on_gpu and torch.backends.cuda.matmul.allow_tf32,
        tf32_convolution=on_gpu and torch.backends.cudnn.allow_tf32,
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products of one run of ``work``.

    By the references, uncompiled: torch does not know what native operations and compiled ones hold. So a FIR
    filter counts as the depthwise convolution of its reference, with 16 taps where a separable one needs 8.
    What a checkpoint computes again in the backward pass does not count: it is no part of the result. What
    an operation computes again in its own backward pass (the hidden layer of ``fused_mlp``) does.
    """
    counter = _Counter()
    counted_once = partial(checkpoint, context_fn=lambda: (nullcontext(), _Pause(counter)))
    with (
        torch.compiler.set_stance("force_eager"),
        patch.dict(extension.AUTO, clear=True),
        patch.object(recompute, "checkpoint", counted_once),
        counter,
    ):
        work()
    return counter.total


class _Pause:
    """No counting. A checkpoint enters the same one again where a derivative inside of it, and then the
    backward pass, each ask for what it did not keep."""

    def __init__(self, counter: _Counter) -> None:
        self.counter = counter

    def __enter__(self) -> None:
        self.counter.pauses += 1

    def __exit__(self, *_: object) -> None:
        self.counter.pauses -= 1


class _Counter(TorchDispatchMode):
    """Adds up by torch's own formulas. (Its FlopCounterMode also follows modules, which a second derivative
    inside of a module upsets.)"""

    total = 0
    pauses = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.pauses and func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result
