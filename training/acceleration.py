"""Two ways to have the same pictures sooner: float16 and compilation.

**Half.** A GPU multiplies float16 numbers several times as fast as float32 ones, and moves them in half the
time. float16 has 11 bits and ends at 65504, so only the super-resolutions, which take most multiplications of
a large picture, run in it, with their activations bounded (FP16_CLAMP), as published training has it. Planes,
rays and signed distances stay float32. CPUs have no such units: there the option is refused.

**Compilation.** ``torch.compile`` turns the operations of a module into few kernels: where each operation
alone would read and write a whole picture, a chain of them is done in one pass. What pays on a GPU is what
consists of convolutions with small operations between them: the planes' synthesis and the super-resolutions.
The renderer is left alone: its samples change in number with every chunk, and its operations are fused by
hand already. Modules are compiled in place (``nn.Module.compile``): parameters, their names and checkpoints
stay as they are. Each shape is compiled anew, at its first call; a copy of a module is not compiled.

Results are those of float32 without compilation up to rounding: about 1e-3 of the picture's range by half,
1e-6 by compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import nn

from dnnlib.errors import UserError
from training.generator import Generator
from training.network_source import open_network


@dataclass(frozen=True)
class Acceleration:
    """What to use of it."""

    compile: bool = False
    half: bool = False
    backend: str = "inductor"  # of torch.compile; others do the same without kernels of their own, for tests

    def check(self, device: torch.device | str) -> None:
        """Raises UserError where ``device`` or this machine cannot do what is wanted."""
        kind = torch.device(device).type
        if self.half and kind != "cuda":
            raise UserError(
                f"--half needs a CUDA device, and this is {kind}: leave --half out, or give --device cuda"
            )
        if self.compile and (reason := _why_not(self.backend, str(device))):
            raise UserError(
                f"--compile: torch.compile does not work here ({reason}); install what it lacks, "
                "or leave --compile out"
            )


def acceleration_options(command: Callable) -> Callable:
    """--half and --compile of a command line, which gets them as ``half`` and ``compiled``."""
    half = click.option(
        "--half", is_flag=True, help="Super-resolution in float16: for CUDA, refused elsewhere."
    )
    compiled = click.option(
        "--compile",
        "compiled",
        is_flag=True,
        help="Compile the networks: for many pictures on CUDA; on a CPU it takes longer than it saves.",
    )
    return half(compiled(command))


def open_accelerated(network: Path | str, device: torch.device | str, how: Acceleration) -> Generator:
    """:func:`training.network_source.open_network`, accelerated.

    Raises UserError as :meth:`Acceleration.check` does, before anything is read.
    """
    how.check(device)
    return accelerate(open_network(network, device), how)


def accelerate(generator: Generator, how: Acceleration) -> Generator:
    """A frozen ``generator`` as it should run. With half it is another one with the same weights.

    Compilation itself happens at the first call.
    """
    if how.half:
        generator = in_half(generator)
    compile_modules(how, generator.synthesis, generator.superresolution, generator.superresolution_semantic)
    return generator


def in_half(generator: Generator) -> Generator:
    """A frozen copy whose super-resolutions run in float16 on CUDA (in float32 elsewhere)."""
    device = next(generator.parameters()).device
    half = Generator(generator.config, fp16=True).to(device)
    half.load_state_dict(generator.state_dict())
    return half.eval().requires_grad_(False)


def compile_modules(how: Acceleration, *modules: nn.Module | None) -> None:
    """Compiles modules in place where that is wanted; None is what a plain generator has no part for."""
    if not how.compile:
        return
    for module in modules:
        if module is not None:
            # sizes decide between native and reference operations, so they must be numbers, not symbols
            module.compile(backend=how.backend, dynamic=False)


@functools.cache
def _why_not(backend: str, device: str) -> str | None:
    """Why nothing can be compiled for ``device``, in one line, or None: a small function tells.

    What may be missing is a C++ compiler, Triton, Python's headers, or support for this very Python.
    """
    try:
        torch.compile(_small, backend=backend, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # compilers fail in many ways, and none of them may be a traceback
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _small(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).sin()
