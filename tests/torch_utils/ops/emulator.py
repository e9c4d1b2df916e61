"""CUDA kernels as C++ for the CPU, and the structures that they are called with.

There is no GPU where this project is tested, so the kernels are compiled with a header that stands for CUDA's
(emulated/cuda_runtime.h): threads, barriers, shared memory and atomics are real, only slow.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_bool, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path

import pytest
import torch

from torch_utils import extension

NUMBERS = {torch.float32: ("float", c_float), torch.float64: ("double", c_double)}
LAUNCH = re.compile(r"([\w:]+(?:<[^<>]*>)?)<<<(.*?)>>>\((.*?)\);")


def structure(name, **members):
    return type(name, (ctypes.Structure,), {"_fields_": list(members.items())})


Mlp = structure(
    "Mlp",
    **dict.fromkeys(("points", "channels", "heads", "width", "outputs"), c_int64),
    **dict.fromkeys(("x", "weight1", "bias1", "weight2", "bias2", "grad", "direction"), c_void_p),
    **dict.fromkeys(("y", "to_x", "to_weight1", "to_bias1", "to_weight2"), c_void_p),
)
Partial = structure("Partial", slabs=c_int64, **dict.fromkeys(("weight1", "bias1", "weight2"), c_void_p))
Rows = structure(
    "Rows",
    **dict.fromkeys(("points", "planes", "channels", "pitch"), c_int64),
    cells=c_void_p,
    weight=c_void_p,
)

Axis = structure("Axis", **dict.fromkeys(("in_", "out", "up", "down", "before", "taps"), c_int64))
# C++ name, and the tolerance of results of about 1
WIDTHS = {
    torch.float32: ("float", 1e-5),
    torch.float64: ("double", 1e-12),
    torch.float16: ("half", 4e-3),
    torch.bfloat16: ("brain", 3e-2),
}


def bias_act_structure(number):
    return structure(
        "BiasAct",
        **dict.fromkeys(("x", "bias", "factor", "spread", "y"), c_void_p),
        **dict.fromkeys(("outer", "channels", "step"), c_int64),
        **dict.fromkeys(("alpha", "gain", "clamp"), number),
    )


def upfirdn_structure(number):
    return structure(
        "Upfirdn",
        **dict.fromkeys(("x", "f", "y"), c_void_p),
        **dict.fromkeys(("outer", "inner"), c_int64),
        **dict.fromkeys(("rows", "columns"), Axis),
        flip=c_bool,
        gain=number,
    )


def corners_structure(number):
    projection = structure(
        "Projection",
        planes=c_int,
        axes=c_int * 8,
        **dict.fromkeys(("height", "width", "points_per_scene"), c_int64),
        **dict.fromkeys(("per_unit_x", "per_unit_y", "scale"), number),
    )
    pointers = dict.fromkeys(("points", "direction", "by_weight", "cells", "weight", "by_points"), c_void_p)
    return structure("Corners", wanted=c_int, to=projection, count=c_int64, **pointers)


def rays_structure(number):
    return structure(
        "Rays",
        **dict.fromkeys(("rays", "samples", "features", "parts"), c_int64),
        published=c_bool,
        sharpness=number,
        **dict.fromkeys(("density", "depth", "colour", "part_sdf", "normal"), c_void_p),
    )


Marched = structure(
    "Marched", **dict.fromkeys(("colour", "depth", "weight", "mask", "normal", "weights"), c_void_p)
)
RayGradients = structure(
    "RayGradients",
    **dict.fromkeys(("weights", "by_colour", "by_depth", "by_weight", "by_mask", "by_normal"), c_void_p),
    **dict.fromkeys(("density", "colour", "part_sdf", "normal"), c_void_p),
)


RUN_BLOCKS = """extern "C" void run_from_block(unsigned first, int64_t most) {
  first_block = first, most_blocks = most;
}
"""


def compiled(name, folder, wrappers, replacements=()):
    """ops/src/NAME.cu as a library for the CPU, with C functions around its entry points; each key of
    ``replacements`` is replaced there."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    kernels = (extension.SOURCES / f"{name}.cu").read_text()
    for old, new in dict(replacements).items():
        assert kernels.count(old) == 1
        kernels = kernels.replace(old, new)
    kernels = LAUNCH.sub(r"run_blocks(\2, [&] { \1(\3); });", kernels)
    assert "<<<" not in kernels
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(f"{kernels}\nusing namespace mate3d;\n{wrappers}{RUN_BLOCKS}")
    includes = [f"-I{Path(__file__).parent / 'emulated'}", f"-I{extension.SOURCES}"]
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w"]
    subprocess.run([compiler, *flags, *includes, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


KINDS = (
    ("float", "float, float", ""),
    ("double", "double, double", ""),
    ("half", "uint16_t, float", ", false"),
    ("brain", "uint16_t, float", ", true"),
)


def call(function, *arguments):
    function.restype = c_char_p
    given = [
        ctypes.byref(each) if isinstance(each, ctypes.Structure) else c_void_p(each) for each in arguments
    ]
    problem = function(*given)
    assert problem is None, problem


@contextmanager
def blocks_from(library: ctypes.CDLL, first: int, most: int = 1 << 31) -> Iterator[None]:
    """Blocks before the ``first`` do not run, and where a kernel could do with any number, at most ``most``
    are started."""
    library.run_from_block(ctypes.c_uint(first), c_int64(most))
    try:
        yield
    finally:
        library.run_from_block(ctypes.c_uint(0), c_int64(1 << 31))


def pointers(**tensors):
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}
