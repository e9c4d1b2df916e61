"""Published generators: from the tensors and settings of a pickle to a :class:`Generator` of this project.

Two kinds are known. **MaTe3D**: every tensor has its place here, under a name that differs by a prefix only.
**EG3D**: one set of planes and one perceptron that gives density and colour. Written as ours it is a
generator without parts whose texture and shape planes are the same, whose two heads share their first layer,
and whose global head gives the density itself:

    s = SURFACE_DENSITY - density,  so the second layer is  W2 = -w2[0],  b2 = SURFACE_DENSITY - b2[0]

Nothing is taken on trust: the configuration comes from the shapes and from the settings in the file, and then
every tensor must have its place, with its shape, and every place its tensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.labels import LABEL_SETS
from dnnlib.errors import UserError
from dnnlib.files import sha256
from torch_utils.legacy import MalformedPickle, PickledModule, StoredTensor, read_networks, refused
from training.config import NO_LABELS, CameraConfig, GeneratorConfig
from training.generator import Generator
from training.networks.decoder import SURFACE_DENSITY

_PREFERRED = ("G_ema", "G", "")  # the average is what published pictures are made with
# Axes of the three planes as EG3D published them: its projection reads (x, y), (x, z) and (z, x).
_AXES = [
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
    [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
]
# Settings that change the picture, with the value that this project implements; absent ones are as here.
_EXPECTED = {
    "clamp_mode": "softplus",
    "disparity_space_sampling": False,
    "superresolution_noise_mode": "none",
    "white_back": False,
    "density_noise": 0,
    "sr_antialias": True,
}
_MASK_SHARPNESS = 20
_MAPPING_RATE = 0.01
_MAX_SIZE = 1 << 16  # of a layer
_MAX_LEVELS = 12  # doublings of the side


def load_published(path: str | os.PathLike[str]) -> Generator:
    """The generator of a pickle, frozen, on the CPU. Nothing in the file runs."""
    return refused(path, lambda: _load(Path(path)))


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Generator:
    """Writes the generator of the pickle ``source`` to ``target`` (.safetensors), and returns it."""
    target = Path(target)
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the converted generator's name must end in .safetensors")
    generator = load_published(source)
    origin = {"file": Path(source).name, "sha256": sha256(source)}
    generator.save(target, extra={"published": origin})
    return generator


def published_tensors(generator: Generator) -> dict[str, Tensor]:
    """All tensors of a MaTe3D generator (views of ours, on whatever device) under their published names."""
    named = {}
    for prefix, module in (
        ("backbone.synthesis.", generator.synthesis),
        ("backbone.mapping.", generator.mapping),
        ("superresolution.", generator.superresolution),
        ("superresolution_semantic.", generator.superresolution_semantic),
    ):
        if module is not None:
            named |= {prefix + name: tensor.detach() for name, tensor in module.state_dict().items()}
    return named | {f"decoder.{name}": t for name, t in generator.decoder.published_names().items()}


def _load(path: Path) -> Generator:
    module = _generator_module(path, read_networks(path))
    stored = module.tensors()
    plain = "decoder.net.0.weight" in stored
    needed = (
        "backbone.mapping.embed.weight",
        "backbone.mapping.fc0.weight",
        "superresolution.block0.conv0.weight",
    )
    if missing := [name for name in needed if name not in stored]:
        raise UserError(
            f"{path} holds a network ({ascii(module.kind):.80}) without {missing[0]}: it is neither a MaTe3D "
            "nor an EG3D generator"
        )
    tensors = {name: _read(path, name, tensor) for name, tensor in stored.items()}
    if plain:
        tensors = _with_two_heads(tensors, _rate(module))
    elif _rate(module) != 1:
        raise UserError(
            f"{path} scales its decoder by decoder_lr_mul {_rate(module):g}; with parts only 1 is implemented"
        )
    _scale_condition(tensors, module)
    config = infer_config(path, module, tensors)
    with torch.device("meta"):  # shapes first, memory when they fit
        _check(path, {n: t.shape for n, t in published_tensors(Generator(config)).items()}, tensors)
    generator = Generator(config)
    for name, place in published_tensors(generator).items():
        place.copy_(tensors[name])
    return generator.eval().requires_grad_(False)


def _read(path: Path, name: str, stored: StoredTensor) -> Tensor:
    """The values as float32, all finite."""
    if not stored.dtype.is_floating_point:
        raise UserError(f"{path}: {name!a:.80} is {stored.dtype}, not a tensor of a generator")
    tensor = stored.read().float()
    if not tensor.isfinite().all():
        raise UserError(f"{path}: {name!a:.80} holds numbers that are not finite: fetch the file again")
    return tensor


def _generator_module(path: Path, networks: Mapping[str, PickledModule]) -> PickledModule:
    for key in _PREFERRED:
        if key in networks:
            return networks[key]
    held = ", ".join(f"{key!a:.40}" for key in sorted(networks)[:8]) or "no network"
    raise UserError(f"{path} holds no generator: expected G_ema in it and found {held}")


def _check(path: Path, places: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
    """Every tensor has a place of its shape, and every place a tensor."""
    missing, left_over = sorted(places.keys() - tensors.keys()), sorted(tensors.keys() - places.keys())
    if missing:
        raise UserError(f"{path} lacks {len(missing)} tensors of such a generator, first {missing[0]}")
    if left_over:
        raise UserError(
            f"{path} has {len(left_over)} tensors that no place is known for, first {left_over[0]!a:.80}"
        )
    for name, shape in places.items():
        if tensors[name].shape != shape:
            raise UserError(f"{path}: {name} is {tuple(tensors[name].shape)}, expected {tuple(shape)}")


def _with_two_heads(tensors: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
    """EG3D's tensors as those of a MaTe3D generator without parts. ``rate``: of the decoder's learning."""
    named = {}
    for name, tensor in tensors.items():
        if name.startswith("decoder.net."):
            continue
        output = re.fullmatch(r"(backbone\.synthesis\.b\d+\.torgb)(\..+)", name)
        if output:
            named |= {f"{output[1]}_{kind}{output[2]}": tensor for kind in ("tex", "shp")}
        else:
            named[name] = tensor
    layers = [tensors.get(f"decoder.net.{layer}.{kind}") for layer in (0, 2) for kind in ("weight", "bias")]
    if [None if tensor is None else tensor.ndim for tensor in layers] != [2, 1, 2, 1]:
        raise MalformedPickle("a decoder of other layers than EG3D's")
    weight1, bias1, weight2, bias2 = (tensor * rate for tensor in layers)
    heads = {"net_tex": (weight2[1:], bias2[1:]), "net_main_shp": (-weight2[:1], SURFACE_DENSITY - bias2[:1])}
    for head, (weight, bias) in heads.items():
        named |= {f"decoder.{head}.0.weight": weight1, f"decoder.{head}.0.bias": bias1}
        named |= {f"decoder.{head}.2.weight": weight, f"decoder.{head}.2.bias": bias}
    return named | {"decoder.sigmoid_beta": torch.full((1,), 0.1)}  # unused by such a generator


def _rate(module: PickledModule) -> float:
    """Learning-rate multiplier of the decoder, which its layers apply to weights and biases when used."""
    return _number(_settings(module).get("decoder_lr_mul", 1))


def _settings(module: PickledModule) -> dict[str, Any]:
    """How the generator renders."""
    settings = module.attribute("rendering_kwargs")
    return settings if isinstance(settings, dict) else {}


def _number(value: Any, least: float = -1e6, most: float = 1e6) -> float:
    """``value`` where it is a number within bounds."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise MalformedPickle("a setting that is no number of a sensible size")
    return float(value)


def _scale_condition(tensors: dict[str, Tensor], module: PickledModule) -> None:
    """The scale by which a generator multiplies its conditioning camera, moved into its embedding."""
    settings = _settings(module)
    scale = 0.0 if settings.get("c_gen_conditioning_zero") else _number(settings.get("c_scale", 1))
    if scale != 1:
        name = "backbone.mapping.embed.weight"
        tensors[name] = tensors[name] * scale


def infer_config(path: Path, module: PickledModule, tensors: Mapping[str, Tensor]) -> GeneratorConfig:
    """Sizes from the shapes of ``tensors`` (published names), rays and camera from the module's settings."""
    settings = _settings(module)
    _refuse_unknown(path, module, settings)

    def size(name: str, dimension: int = 0) -> int:
        shape = tensors[name].shape if name in tensors else ()
        if len(shape) <= dimension or not 1 <= shape[dimension] <= _MAX_SIZE:
            raise UserError(f"{path}: {name} is absent, or has the unexpected shape {tuple(shape)}")
        return shape[dimension]

    def count(pattern: str) -> int:
        return len({found[1] for name in tensors if (found := re.match(pattern, name))})

    def setting(name: str, least: float, most: float) -> float:
        if type(settings.get(name)) not in (int, float):
            raise UserError(f"{path} does not say its {name} as a number: a model of another kind")
        return _number(settings[name], least, most)

    z_dim = size("backbone.mapping.fc0.weight", 1) - size("backbone.mapping.embed.weight")
    if z_dim < 1:
        raise UserError(f"{path} has no latent besides its camera: no such model")
    parts = count(r"decoder\.net_main_shp_bbbb_(\d+)\.")
    w_dim = size("backbone.mapping.embed.weight")
    blocks = count(r"superresolution\.block(\d+)\.")
    levels = count(r"backbone\.synthesis\.b(\d+)\.")
    if max(levels, blocks) > _MAX_LEVELS:
        raise UserError(
            f"{path} has {levels} resolutions and {blocks} super-resolution blocks: no such model"
        )
    plane_resolution = 2 ** (levels + 1)
    channels = size(f"backbone.synthesis.b{plane_resolution}.conv1.weight")
    sr_resolution = size("superresolution.block0.conv1.noise_const") // 2
    try:
        return GeneratorConfig(
            labels=_labels(path, parts),
            resolution=sr_resolution * 2**blocks,
            z_dim=z_dim,
            w_dim=w_dim,
            mapping_layers=count(r"backbone\.mapping\.fc(\d+)\."),
            plane_resolution=plane_resolution,
            plane_channels=size("backbone.synthesis.b4.torgb_tex.weight") // 3,
            channel_base=channels * plane_resolution,
            channel_max=size("backbone.synthesis.b4.conv1.weight"),
            decoder_width=size("decoder.net_tex.0.weight"),
            part_width=size("decoder.net_main_shp_bbbb_0.0.weight") if parts else 0,
            feature_channels=size("decoder.net_tex.2.weight"),
            plane_projection="published",
            marching="published",
            density="sdf" if parts else "direct",
            beta=float(f"{tensors['decoder.sigmoid_beta'].flatten()[0].abs():.6g}")
            if parts
            else 0.1,  # 0.1, as set
            raw_resolution=_raw_resolution(path, module),
            samples_coarse=round(setting("depth_resolution", 4, 1024)),
            samples_fine=round(setting("depth_resolution_importance", 0, 1024)),
            sr_resolution=sr_resolution,
            sr_channels=tuple(size(f"superresolution.block{i}.conv1.weight") for i in range(blocks)),
            backbone_clamp=_clamp(module, "backbone", "synthesis", f"b{plane_resolution}", "conv1"),
            sr_clamp=_clamp(module, "superresolution", "block0", "conv1"),
            camera=CameraConfig(
                radius=setting("avg_camera_radius", 0, 1000),
                pivot=_pivot(path, settings.get("avg_camera_pivot")),
                near=setting("ray_start", 0, 1000),
                far=setting("ray_end", 0, 1000),
                box_warp=setting("box_warp", 0, 1000),
            ),
        )
    except (KeyError, IndexError) as error:
        raise UserError(f"{path} is not a complete generator: {error} cannot be found in it") from None


def _labels(path: Path, parts: int) -> str:
    if parts == 0:
        return NO_LABELS
    for name, labels in LABEL_SETS.items():
        if labels.count == parts:
            return name
    known = ", ".join(f"{labels.count} ({name})" for name, labels in LABEL_SETS.items())
    raise UserError(f"{path} has {parts} parts, and no label set has as many; known are {known}")


def _refuse_unknown(path: Path, module: PickledModule, settings: Mapping[str, Any]) -> None:
    """Raises where the file asks for something that this project would silently do otherwise."""
    for name, wanted in _EXPECTED.items():
        if settings.get(name, wanted) != wanted:
            found = f"{ascii(settings[name]):.80}"
            raise UserError(f"{path} renders with {name} {found}; only {wanted!r} is implemented")
    facts = {
        "planes": (_attribute(module, "plane_axes", "renderer"), _AXES),
        "mask sharpness": (_attribute(module, "sigmoid", "renderer"), _MASK_SHARPNESS),
        "learning rate of the mapping": (
            _attribute(module, "bias_gain", "backbone", "mapping", "fc0"),
            _MAPPING_RATE,
        ),
        "up-sampling of the first super-resolution block": (
            _attribute(module, "up", "superresolution", "block0", "conv0"),
            2,
        ),
        "architecture": (_attribute(module, "architecture", "backbone", "synthesis", "b8"), "skip"),
    }
    for what, (found, wanted) in facts.items():
        if found is not None and found != wanted:
            raise UserError(f"{path}: its {what} is {ascii(found):.80}; only {wanted} is implemented")


def _attribute(module: PickledModule, name: str, *path: str) -> Any:
    """An attribute of a submodule, or None where there is no such thing."""
    below: PickledModule | None = module
    for step in path:
        below = below.child(step) if below else None
    return below.attribute(name) if below else None


def _clamp(module: PickledModule, *path: str) -> float | None:
    value = _attribute(module, "conv_clamp", *path)
    return None if value is None else _number(value, 0)


def _raw_resolution(path: Path, module: PickledModule) -> int:
    value = module.attribute("neural_rendering_resolution")
    if type(value) is not int or not 4 <= value <= 1024:
        raise UserError(f"{path} does not say at which resolution it renders")
    return value


def _pivot(path: Path, value: Any) -> tuple[float, float, float]:
    if not isinstance(value, list) or len(value) != 3:
        raise UserError(f"{path} does not say which point its cameras look at")
    x, y, z = (_number(each, -1000, 1000) for each in value)
    return x, y, z
