"""The builder of native operations: when it builds, where, and what happens where it cannot.

Compilers are replaced here: a real build and its results are tested with the operations.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tests.torch_utils.dispatched import Dispatched
from torch_utils import extension
from torch_utils.ops.bias_act import bias_act

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing loaded, nothing warned of, an empty cache."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    cached = extension.loaded, extension._warn_once
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_importing_builds_nothing(tmp_path, root):
    code = "import sys, torch_utils.ops.bias_act; print('torch.utils.cpp_extension' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not list(tmp_path.iterdir())


def test_reference_never_loads(monkeypatch):
    monkeypatch.setattr(extension, "loaded", lambda _: pytest.fail("loaded"))
    assert not extension.use_native("bias_act", "reference", CPU)


def test_auto_follows_the_table(monkeypatch):
    monkeypatch.setattr(extension, "loaded", lambda _: frozenset({"cpu"}))
    monkeypatch.setattr(extension, "AUTO", {})
    assert not extension.use_native("bias_act", "auto", CPU)
    monkeypatch.setattr(extension, "AUTO", {"bias_act": {"cpu": 100}})
    assert extension.use_native("bias_act", "auto", CPU)
    assert extension.use_native("bias_act", "auto", CPU, 100)
    assert not extension.use_native("bias_act", "auto", CPU, 99)
    assert extension.use_native("bias_act", "native", CPU, 99)
    assert not extension.use_native("bias_act", "auto", torch.device("cuda"))


def test_auto_takes_only_what_exists():
    for operation, kinds in extension.AUTO.items():
        assert kinds.keys() <= extension.NATIVE[operation]


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="auto, reference, native"):
        extension.use_native("bias_act", "cuda", CPU)


def test_failure_warns_once_with_the_reason_and_the_reference_runs(monkeypatch):
    def fail(*_):
        raise RuntimeError(
            "Error building extension\n[1/2] c++ bias_act.cpp\nc++: error: no such option\nmore"
        )

    monkeypatch.setattr(extension, "_compile", fail)
    x = torch.randn(2, 3)
    with pytest.warns(UserWarning, match="its reference runs instead: c..: error: no such option"):
        y = bias_act(x, act="lrelu", impl="native")
    assert torch.equal(y, bias_act(x, act="lrelu", impl="reference"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bias_act(x, act="lrelu", impl="native")


def test_operation_without_kernel_warns_once(monkeypatch):
    monkeypatch.setattr(extension, "loaded", lambda _: pytest.fail("loaded"))
    with pytest.warns(UserWarning, match="no native nothing for cpu"):
        assert not extension.use_native("nothing", "native", CPU)


def test_a_failed_build_leaves_nothing_that_looks_finished(monkeypatch, tmp_path):
    monkeypatch.setattr(extension, "_compile", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        extension.build("bias_act", with_cuda=False)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".so"]


def test_second_build_is_the_first_one(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        extension, "_compile", lambda _, library, __: (calls.append(1), library.write_bytes(b""))
    )
    assert extension.build("bias_act", with_cuda=False) == extension.build("bias_act", with_cuda=False)
    assert len(calls) == 1
    assert capsys.readouterr().err.count("Building native bias_act") == 1


def test_changed_sources_are_built_anew(monkeypatch, tmp_path):
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "a.cpp").write_text('#include "a.h"\n#include <vector>\n')
    (sources / "a.h").write_text('#include "b.h"\n')
    (sources / "b.h").write_text('#include "a.h"\n')  # a circle must not trap it
    (sources / "other.cpp").write_text("one")
    monkeypatch.setattr(extension, "SOURCES", sources)
    seen = {extension._fingerprint("a", True), extension._fingerprint("a", False)}
    (sources / "other.cpp").write_text("two")
    assert extension._fingerprint("a", False) in seen  # nothing that concerns a
    for change in ("a.h", "b.h", "a.cpp", "a_cpu.cpp"):
        (sources / change).write_text('#include "b.h"\nchanged')
        seen.add(extension._fingerprint("a", False))
    assert len(seen) == 6


def test_another_processor_never_gets_this_ones_build(monkeypatch):
    before = extension._fingerprint("bias_act", False)
    monkeypatch.setattr(extension, "_processor", lambda: "x86_64 AVX2 avx avx2")
    assert before != extension._fingerprint("bias_act", False)


def test_a_compiler_that_refuses_the_processor_flags_builds_without(monkeypatch):
    monkeypatch.setattr(extension, "PROCESSOR_FLAGS", ("-march=abacus", "-O1"))
    assert extension._processor_flags() == ["-O1"]
    monkeypatch.setattr(extension, "PROCESSOR_FLAGS", ("-march=abacus",))
    assert extension._processor_flags() == []


def test_a_defined_operation_is_traced_before_it_is_built_and_refuses_a_derivative_it_lacks():
    operation = extension.define("for_a_test(Tensor x) -> Tensor", fake=torch.empty_like)
    assert operation(torch.empty(2, 3, device="meta")).shape == (2, 3)
    torch.library.impl("mate3d::for_a_test", "CPU", torch.clone, lib=extension._LIBRARY)
    y = operation(torch.ones(2, requires_grad=True))
    with pytest.raises(NotImplementedError, match="for_a_test is not differentiable"):
        y.sum().backward()


@pytest.fixture(scope="module")
def product():
    """Calls ``scale (x y, sign(x))``, with y = 1 where it is None; of the sign there is no gradient. It is
    twice differentiable, because its derivative is once. ``product.asked`` has what was asked of that."""
    names = "for_a_test_product", "for_a_test_slope"
    asked = []

    def keep(ctx, inputs, output):
        x, y, ctx.scale = inputs
        ctx.save_for_backward(x, y)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def backward(ctx, by_product, by_sign):
        assert by_sign is None
        x, y = ctx.saved_tensors
        asked.append(tuple(ctx.needs_input_grad))
        by_x, by_y, _ = ctx.needs_input_grad
        return (
            slope(by_product, y, ctx.scale) if by_x else None,
            slope(by_product, x, ctx.scale) if by_y else None,
            None,
        )

    def calculate(x, y, scale):
        return scale * (x.clone() if y is None else x * y), scale * x.sign()

    def calculate_slope(by, factor, scale):
        return scale * (by.clone() if factor is None else by * factor)

    product = extension.define(
        f"{names[0]}(Tensor x, Tensor? y, float scale) -> (Tensor, Tensor)",
        lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
        backward,
        keep,
    )
    slope = extension.define(
        f"{names[1]}(Tensor by, Tensor? factor, float scale) -> Tensor", lambda by, *_: torch.empty_like(by)
    )
    for name, function in zip(names, (calculate, calculate_slope), strict=True):
        torch.library.impl(f"mate3d::{name}", "CPU", function, lib=extension._LIBRARY)
    product.asked = asked
    return product


@pytest.mark.parametrize("needing", ["x", "y", "xy"])
def test_a_caller_differentiates_as_the_dispatcher_does(product, needing):
    given = {name: torch.randn(3).requires_grad_(name in needing) for name in "xy"}
    wanted = [given[name] for name in needing]
    for operation in (product, torch.ops.mate3d.for_a_test_product.default):
        y, sign = operation(given["x"], given["y"], 2)
        assert y.requires_grad and not sign.requires_grad
        found = torch.autograd.grad(y.sum(), wanted)
        expected = [2 * given["y" if name == "x" else "x"].detach() for name in needing]
        torch.testing.assert_close(list(found), expected)
        assert product.asked.pop() == ("x" in needing, "y" in needing, False)


def test_a_caller_takes_none_for_a_tensor(product):
    x = torch.randn(3, requires_grad=True)
    (found,) = torch.autograd.grad(product(x, None, 2.0)[0].sum(), x)
    torch.testing.assert_close(found, torch.full_like(x, 2.0))


def test_a_caller_leads_to_the_derivative_that_there_is_not(product):
    x, y = (torch.randn(3, requires_grad=True) for _ in range(2))
    (first,) = torch.autograd.grad(product(x, y, 2.0)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="for_a_test_slope is not differentiable"):
        first.sum().backward()


def test_a_caller_records_nothing_where_nothing_is_differentiated(product):
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert not product(x, None, 2.0)[0].requires_grad
    assert not product(x.detach(), None, 2.0)[0].requires_grad
    with torch.inference_mode():
        assert product(x, None, 2.0)[0].is_inference()


@pytest.mark.parametrize("differentiated", [False, True])
def test_a_caller_passes_what_watches_operations(product, differentiated):
    operation, x = torch.ops.mate3d.for_a_test_product.default, torch.randn(3, requires_grad=differentiated)
    with Dispatched() as dispatched:
        product(x, None, 2.0)
    assert dispatched.operations[0] == operation
    traced = make_fx(lambda x: product(x, None, 2.0)[0])(x)
    assert operation in [node.target for node in traced.graph.nodes]
    with FakeTensorMode() as mode:
        assert product(mode.from_tensor(x), None, 2.0)[0].shape == (3,)
    compiled = torch.compile(lambda x: product(x * 2, None, 2.0)[0], backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), 4 * x)


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)
    workers = [context.Process(target=build_slowly, args=(tmp_path, together)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "builds").read_text() == "x"


def build_slowly(folder, together):
    def compile_slowly(_, library, __):
        with open(folder / "builds", "a") as file:
            file.write("x")
        time.sleep(0.5)  # the other one, which set off with this one, has looked by then
        library.write_bytes(b"")

    extension._compile = compile_slowly
    together.wait(30)
    extension.build("bias_act", with_cuda=False)


def test_compilation_check_says_where_there_is_no_compiler(monkeypatch, capsys):
    monkeypatch.setattr(extension.shutil, "which", lambda *_, **__: None)
    assert extension.compile_cuda()
    assert "skipped: there is no nvcc" in capsys.readouterr().out


def test_compilation_check_fails_with_the_compiler(monkeypatch, capsys):
    monkeypatch.setattr(extension.shutil, "which", lambda *_, **__: "false")
    assert not extension.compile_cuda(["9.0"])
    assert "bias_act.cu: FAILS" in capsys.readouterr().out


def test_compilation_check_takes_the_flags_of_a_build(monkeypatch):
    """torch forbids half precision to become float by itself, which the kernels need: it must be undone."""
    pytest.importorskip("setuptools")  # torch's builder needs it
    commands = []
    monkeypatch.setattr(extension.shutil, "which", lambda *_, **__: "nvcc")
    monkeypatch.setattr(extension, "_run", lambda command: commands.append(command) or True)
    assert extension.compile_cuda(["9.0"])
    kernels = [command for command in commands if any(part.endswith(".cu") for part in command)]
    assert len(kernels) == len(list(extension.SOURCES.glob("*.cu")))
    for command in kernels:
        for name in ("__CUDA_NO_HALF_CONVERSIONS__", "__CUDA_NO_BFLOAT16_CONVERSIONS__"):
            assert command.index(f"-D{name}") < command.index(f"-U{name}")
