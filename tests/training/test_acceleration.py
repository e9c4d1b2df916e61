"""Compiled and half-precision generators show the same pictures."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dnnlib.errors import UserError
from tests.published_files import SMALL
from training import acceleration
from training.acceleration import Acceleration, accelerate, compile_modules, in_half
from training.config import GeneratorConfig
from training.editing.portrait import LearnedCopy
from training.generator import Generator, Rendering, Want
from training.networks import superresolution
from training.pictures import look
from training.scene import camera_at, latent_of_seed, scene_of, ws_of_latent

EAGER = Acceleration(compile=True, backend="aot_eager")  # traced and differentiated, but no kernels built


@pytest.fixture
def generator() -> Generator:
    """Random weights, 16 x 16 pictures, six classes."""
    return Generator(SMALL).eval().requires_grad_(False)


@pytest.fixture
def compilations() -> Iterator[dict[str, int]]:
    """torch's own counters: 'unique_graphs' is what was compiled since the test began."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    yield counters["stats"]
    assert not counters["graph_break"]


def view(generator: Generator) -> Rendering:
    ws = ws_of_latent(generator, latent_of_seed(generator, 1), 0.7)
    return look(scene_of(generator, ws), camera_at(generator, 0.1, 0.0), normals=True)


def test_a_compiled_view_is_the_same(generator: Generator, compilations: dict[str, int]) -> None:
    names = set(generator.state_dict())
    before = view(generator)
    after = view(accelerate(generator, EAGER))
    assert compilations["unique_graphs"] == 3
    for name in ("image", "mask", "depth", "normals"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))
    view(generator)
    assert compilations["unique_graphs"] == 3  # the same shapes again
    assert set(generator.state_dict()) == names


def test_a_compiled_copy_learns_the_same(generator: Generator, compilations: dict[str, int]) -> None:
    ws = ws_of_latent(generator, latent_of_seed(generator, 1), 0.7)
    found = []
    for how in (Acceleration(), EAGER):
        learned = LearnedCopy(generator, ws)
        compile_modules(how, learned.synthesis)
        field = learned()
        (field.planes_texture.square().mean() + field.planes_shape.square().mean()).backward()
        found.append([learned.ws.grad, *(p.grad for p in learned.synthesis.parameters())])
    assert compilations["unique_graphs"] == 1
    torch.testing.assert_close(found[1], found[0])


def test_a_generator_without_parts_is_compiled(generator: Generator) -> None:
    plain = Generator(GeneratorConfig(**{**vars(generator.config), "labels": "none", "part_width": 0}))
    assert plain.superresolution_semantic is None
    accelerate(plain, EAGER)


def test_nothing_wanted_changes_nothing(generator: Generator) -> None:
    assert accelerate(generator, Acceleration()) is generator
    Acceleration().check("cpu")


def test_half_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match="needs a CUDA device.*leave --half out"):
        Acceleration(half=True).check("cpu")


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand a long story")

    acceleration._why_not.cache_clear()
    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UserError, match=r"does not work here \(no compiler\); install"):
        Acceleration(compile=True).check("cpu")
    acceleration._why_not.cache_clear()


@pytest.fixture
def half_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 where a GPU would have it."""
    usual = superresolution.enter_precision

    def enter(x: Tensor, use_fp16: bool) -> Tensor:
        return x.half() if use_fp16 else usual(x, use_fp16)

    monkeypatch.setattr(superresolution, "enter_precision", enter)


def test_half_is_close(generator: Generator, half_on_cpu: None) -> None:
    full, half = view(generator), view(in_half(generator))
    assert torch.equal(full.depth, half.depth)
    for name in ("image", "mask"):
        a, b = getattr(full, name), getattr(half, name)
        # 11 bits through three layers and their sums
        assert b.dtype == torch.float32 and 0 < (a - b).abs().max() < 0.01 * a.abs().max()


def test_gradients_of_an_edit_survive_half(generator: Generator, half_on_cpu: None) -> None:
    """A mean over many pixels has gradients below what float16 holds."""
    planes = generator.planes(ws_of_latent(generator, latent_of_seed(generator, 1), 0.7))
    found = []
    for network in (generator, in_half(generator)):
        leaf = planes.texture.clone().requires_grad_()
        ws = torch.ones(1, network.synthesis.num_ws, 8, requires_grad=True)  # an inversion learns it
        field = network.field(type(planes)(leaf, planes.shape))
        seen = network.synthesise(ws, camera_at(network, 0.0, 0.0), field=field, deterministic=True)
        (1e-9 * (seen.image.square().sum() + seen.mask.square().sum())).backward()
        found.append((leaf.grad, ws.grad))
    for full, half in zip(*found, strict=True):
        assert full.abs().max() > 0
        assert (full - half).norm() < 0.02 * full.norm()


@pytest.mark.cuda
def test_half_is_close_on_cuda(generator: Generator) -> None:
    generator = generator.cuda()
    Acceleration(half=True).check("cuda")
    full, half = view(generator), view(accelerate(generator, Acceleration(half=True)))
    for name in ("image", "mask"):
        a, b = getattr(full, name), getattr(half, name)
        assert b.dtype == torch.float32 and 0 < (a - b).abs().max() < 0.01 * a.abs().max()


@pytest.mark.cuda
@pytest.mark.parametrize("half", [False, True])
def test_inductor_on_cuda(generator: Generator, half: bool) -> None:
    """Pictures and, as an edit needs them, gradients of a compiled generator and of its learned copy."""
    how = Acceleration(compile=True, half=half)
    how.check("cuda")
    found = []
    for network in (generator.cuda(), accelerate(copy.deepcopy(generator), how)):
        ws = ws_of_latent(network, latent_of_seed(network, 1), 0.7)
        learned = LearnedCopy(network, ws)
        compile_modules(how if network is not generator else Acceleration(), learned.synthesis)
        seen = network.synthesise(
            ws, camera_at(network, 0.0, 0.0), want=Want(), field=learned(), deterministic=True
        )
        (seen.image.square().mean() + seen.mask.square().mean()).backward()
        found.append((seen.image.detach(), seen.mask.detach(), learned.ws.grad))
    for plain, fast in zip(*found, strict=True):
        # 11 bits through three layers; compiled products may be summed in another order
        assert (plain - fast).abs().max() < (0.02 if half else 1e-3) * plain.abs().max()
