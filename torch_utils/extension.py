"""Builds the native operations in ``ops/src`` once, lazily, and decides between them and their references.

Nothing is built on import. The first call that wants a native operation builds it for this machine (some 20
seconds), into ``TORCH_EXTENSIONS_DIR`` or the user's cache, where later processes find it. Without a compiler
the reference runs, and one warning gives the reason. Each operation is a library of its own, named by what
its sources hold, so that a change to one of them builds that one again and no other.

What an operation is, and what it does, live in two places:

- its schema, its shapes (fake kernel) and its derivatives are given in Python, beside its reference, by
  :func:`define` when that module is imported: ``torch.ops.mate3d.NAME`` can be traced before a compiler ran.
- ``ops/src/NAME.cpp``, with ``NAME_cpu.cpp`` and ``NAME.cu`` where there are such, only adds kernels:
  ``TORCH_LIBRARY_IMPL(mate3d, CPU, library)`` and, built with ``MATE3D_CUDA``, the same for CUDA. torch
  compares their signatures with the schemas when it loads them.

CPU code is compiled for the very processor that builds it, so the name of the cached build holds the
processor's features: a cache on a shared disk serves different machines side by side.

``python -m torch_utils.extension --build`` builds ahead of time; ``--compile-cuda`` checks that every kernel
compiles, which needs nvcc but no GPU.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

try:
    import fcntl
except ImportError:  # not a POSIX system: two first builds at a time are the user's risk
    fcntl = None

SOURCES = Path(__file__).parent / "ops" / "src"
IMPLEMENTATIONS = ("auto", "reference", "native")
# The last two let the compiler evaluate both sides of a condition, hence several elements at once.
CXX_FLAGS = ["-O3", "-std=c++20", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
# All that this processor can do; the first that the compiler knows (Apple's and older ones for ARM lack one).
PROCESSOR_FLAGS = ("-march=native", "-mcpu=native")
# torch's own flags, which come before these, take away the conversions between half precision and float.
NVCC_FLAGS = ["-O3", "-std=c++20", "-U__CUDA_NO_HALF_CONVERSIONS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__"]
ARCHITECTURES = ("7.5", "8.0", "8.9", "9.0", "10.0")  # of the CUDA compilation check

# Native operations that exist, and for which devices. Others run as references.
NATIVE: dict[str, frozenset[str]] = {
    "bias_act": frozenset({"cpu", "cuda"}),
    "upfirdn2d": frozenset({"cpu", "cuda"}),
    "march_rays": frozenset({"cpu", "cuda"}),
    "fused_mlp": frozenset({"cpu", "cuda"}),
    "triplane_sample": frozenset({"cpu", "cuda"}),
}
# Where 'auto' takes the native one, by kind of device, and from how many elements of the largest tensor on:
# where it was measured and repays the build. docs/performance.md has the figures.
AUTO: dict[str, Mapping[str, int]] = {
    "bias_act": {"cpu": 1 << 16, "cuda": 1 << 20},
    "upfirdn2d": {"cpu": 1 << 15, "cuda": 1 << 20},
    "march_rays": {"cpu": 1 << 15, "cuda": 0},
    "fused_mlp": {"cpu": 1 << 18, "cuda": 1 << 18},  # hidden values
    "triplane_sample": {"cpu": 1 << 16, "cuda": 0},  # features
}

# Owns the schemas; they last as long as this module.
_LIBRARY = torch.library.Library("mate3d", "FRAGMENT")


def define(
    schema: str,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> Callable:
    """Makes ``torch.ops.mate3d.NAME`` of a schema ``NAME(Tensor x, ...) -> Tensor``; returns what calls it.

    fake: the same signature on tensors without data, for shapes, strides and types (``torch.compile``).
    backward, setup_context: as in ``torch.library.register_autograd``, for arguments that are no lists of
    tensors; an operation without them may only be called where nothing needs a gradient, and says so
    otherwise; so may one that changes its arguments.
    Kernels come with a library that :func:`loaded` loads.
    """
    name = f"mate3d::{schema[: schema.index('(')]}"
    torch.library.define(name, schema[schema.index("(") :], lib=_LIBRARY)
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    operation = getattr(torch.ops.mate3d, name.removeprefix("mate3d::")).default
    if "!" in schema:  # torch differentiates only what leaves its arguments as they are
        return operation
    backward = backward or _not_differentiable(name)
    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_LIBRARY)
    return _caller(operation, backward, setup_context)


def _not_differentiable(name: str) -> Callable:
    def backward(*_: object) -> None:
        raise NotImplementedError(f"{name} is not differentiable: a derivative of higher order was asked for")

    return backward


def _caller(operation: torch._ops.OpOverload, backward: Callable, setup_context: Callable | None) -> Callable:
    """Calls the operation by positional arguments and differentiates it, both sooner than torch.library does.

    Its own way leads through Python twice, for some 4 microseconds of each call, and for 17 where something
    needs a gradient: more than a small operation takes. Code that is being compiled goes that way.
    """

    def forward(ctx: FunctionCtx, *inputs: object) -> object:
        with torch._C._AutoDispatchBelowAutograd():
            output = operation(*inputs)
        if setup_context is not None:
            setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    differentiable = type(operation.__name__.removesuffix(".default"), (Function,), methods)

    def call(*inputs: object) -> object:
        if torch.compiler.is_compiling():
            return operation(*inputs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return differentiable.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return operation(*inputs)

    return call


def use_native(operation: str, impl: str, device: torch.device, elements: int | None = None) -> bool:
    """Whether ``operation`` shall run natively on ``device``; if so, it is built and loaded by now.

    ``elements``: size of the largest tensor, for 'auto'; without it, size does not matter.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is '{impl}'; it must be one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "reference":
        return False
    kind = device.type
    if impl == "auto":
        least = AUTO.get(operation, {}).get(kind)
        if least is None or (elements is not None and elements < least):
            return False
    return _has_kernels(operation, kind)


def _has_kernels(operation: str, kind: str) -> bool:
    if kind not in NATIVE.get(operation, ()):
        _warn_once(f"there is no native {operation} for {kind}: its reference runs")
        return False
    return kind in loaded(operation)


# A compiled model takes what holds while it is traced; sizes, which may be symbols there, stay outside.
# torch.compiler.assume_constant_result would do this, but imports the whole compiler.
_has_kernels._dynamo_marked_constant = True


@functools.cache
def loaded(operation: str) -> frozenset[str]:
    """Kinds of device for which ``operation`` has kernels; loads its library, and builds it if need be.

    Empty, after one warning with the reason, where that fails.
    """
    with_cuda = torch.cuda.is_available() and "cuda" in NATIVE[operation]
    try:
        torch.ops.load_library(build(operation, with_cuda))
    except Exception as error:  # a compiler can fail in any way, and none of them may stop the caller
        _warn_once(f"native {operation} is not available, its reference runs instead: {_reason(error)}")
        return frozenset()
    return NATIVE[operation] & ({"cpu", "cuda"} if with_cuda else {"cpu"})


def build(operation: str, with_cuda: bool) -> Path:
    """Path of the operation's library, built unless it is there. Raises whatever the compiler raises."""
    folder = _cache() / f"mate3d_{operation}-{_fingerprint(operation, with_cuda)}"
    library = folder / f"mate3d_{operation}.{'pyd' if os.name == 'nt' else 'so'}"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "building"):
        if not library.exists():  # another process may have built it while this one waited
            kind = "CPU and CUDA" if with_cuda else "CPU"
            print(f"Building native {operation} for {kind} in {folder} (once)", file=sys.stderr)
            _compile(operation, library, with_cuda)
    return library


def _sources(operation: str, with_cuda: bool) -> list[Path]:
    names = [f"{operation}.cpp", f"{operation}_cpu.cpp", *([f"{operation}.cu"] if with_cuda else [])]
    return [SOURCES / name for name in names if (SOURCES / name).is_file()]


def _compile(operation: str, library: Path, with_cuda: bool) -> None:
    cpp_extension = _cpp_extension()
    if with_cuda and cpp_extension.CUDA_HOME is None:
        raise RuntimeError("nvcc was not found; set CUDA_HOME to the folder of the CUDA toolkit")
    defines = ["-DMATE3D_CUDA"] if with_cuda else []
    # In a folder of its own, moved when complete: an interrupted build leaves nothing that looks finished.
    with tempfile.TemporaryDirectory(dir=library.parent) as temporary:
        cpp_extension.load(
            library.stem,
            [str(path) for path in _sources(operation, with_cuda)],
            extra_cflags=[*CXX_FLAGS, *_processor_flags(), *defines, *_late_includes()],
            extra_cuda_cflags=[*NVCC_FLAGS, *(f"-Xcompiler={flag}" for flag in _late_includes())],
            extra_ldflags=["-fopenmp"],
            build_directory=temporary,
            with_cuda=with_cuda,
            is_python_module=False,
        )
        # It is loaded by now; the same file under its new name will not be loaded again.
        os.replace(Path(temporary) / library.name, library)


def compile_cuda(architectures: Sequence[str] = ARCHITECTURES) -> bool:
    """Compiles every kernel for each architecture, and its host side; prints what fails. Needs no GPU."""
    cpp_extension = _cpp_extension()
    home = cpp_extension.CUDA_HOME
    nvcc = shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))
    if not nvcc:
        print("skipped: there is no nvcc")
        return True
    codes = [architecture.replace(".", "") for architecture in architectures]
    targets = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in codes]
    late = [f"-Xcompiler={flag}" for flag in _late_includes()]
    torch_headers = [f"-I{path}" for path in cpp_extension.include_paths()]
    # torch's flags too, as a build has them
    flags = [*cpp_extension.COMMON_NVCC_FLAGS, *NVCC_FLAGS, *targets, *late]
    commands = [[nvcc, *flags, "-c", str(kernel)] for kernel in sorted(SOURCES.glob("*.cu"))]
    for host in sorted(SOURCES.glob("*.cpp")):
        if "MATE3D_CUDA" in host.read_text():  # for the host compiler, with the toolkit's headers
            flags = ["-std=c++20", "-O0", "-DMATE3D_CUDA", *torch_headers, *late]
            commands.append([nvcc, *flags, "-c", str(host)])
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(os.cpu_count()) as workers:
        outputs = (f"{temporary}/{number}.o" for number in range(len(commands)))
        fine = workers.map(lambda command, output: _run([*command, "-o", output]), commands, outputs)
        return all([*fine])  # the rest is compiled too when one fails


def _processor_flags() -> list[str]:
    """Those of PROCESSOR_FLAGS that the compiler takes, one or none."""
    compiler = _cpp_extension().get_cxx_compiler()
    for flag in PROCESSOR_FLAGS:
        command = [compiler, flag, "-x", "c++", "-fsyntax-only", "-"]
        if subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0:
            return [flag]
    return []


def _cpp_extension() -> ModuleType:
    """torch's builder, imported only to build: it needs setuptools, and logs where there is no GPU."""
    from torch.utils import cpp_extension

    return cpp_extension


def _run(command: list[str]) -> bool:
    """Runs a compiler on the source named by ``-c``; prints how that went."""
    done = subprocess.run(command, capture_output=True, text=True)
    name = Path(command[command.index("-c") + 1]).name
    print(f"{name}: {'compiles' if done.returncode == 0 else 'FAILS'}", flush=True)
    if done.returncode != 0:
        print(" ".join(command), done.stdout, done.stderr, sep="\n")
    return done.returncode == 0


def _reason(error: Exception) -> str:
    """The telling line of a compiler's many."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "error:" in line or "not found" in line), lines[0])


def _late_includes() -> list[str]:
    """Flags for the CUDA headers of torch's pip packages, searched last: a toolkit may lack some."""
    folders = [Path(folder) / "nvidia" / "cu13" / "include" for folder in sys.path]
    return [f"-idirafter{folder}" for folder in folders if folder.is_dir()][:1]


def _cache() -> Path:
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mate3d"


def _fingerprint(operation: str, with_cuda: bool) -> str:
    """Changes with everything that the library depends on."""
    parts = [torch.__version__, _processor(), str(with_cuda), *CXX_FLAGS, *PROCESSOR_FLAGS]
    if with_cuda:
        parts += [str(torch.version.cuda), os.environ.get("TORCH_CUDA_ARCH_LIST", ""), *NVCC_FLAGS]
        parts += [str(torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]
    digest = hashlib.sha256("\n".join(parts).encode())
    files = _sources(operation, with_cuda)
    for path in files:  # grows by the headers that these include
        content = path.read_bytes()
        digest.update(path.name.encode() + content)
        headers = (SOURCES / name.decode() for name in re.findall(rb'#include "(.+)"', content))
        files += [header for header in headers if header.is_file() and header not in files]
    return digest.hexdigest()[:16]


@functools.cache
def _processor() -> str:
    """What this machine's processor can do, as far as the system tells."""
    parts = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    description = Path("/proc/cpuinfo")
    if not description.is_file():
        return " ".join([*parts, platform.processor()])
    for line in description.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features", "isa"):  # x86, ARM, RISC-V; the first core's
            return " ".join([*parts, *sorted(value.split())])
    return " ".join(parts)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, so that a killed build does not block the next one."""
    with open(path, "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds the native operations, or checks their kernels.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--build", action="store_true", help="build for this machine now")
    action.add_argument(
        "--compile-cuda", action="store_true", help="compile every kernel; needs nvcc, no GPU"
    )
    parser.add_argument(
        "--arch", nargs="+", default=ARCHITECTURES, help="compute capabilities to compile for"
    )
    arguments = parser.parse_args()
    if arguments.compile_cuda:
        return 0 if compile_cuda(arguments.arch) else 1
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for library in workers.map(lambda name: build(name, torch.cuda.is_available()), NATIVE):
            print(library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
