"""What ``--network`` may be: a file of this project, a folder with one, a published pickle, or a Hub name."""

from __future__ import annotations

import os
import shlex
import warnings
from pathlib import Path

import click
import torch

from dnnlib.download import fetch, hub_name
from dnnlib.errors import UserError
from torch_utils import checkpoint
from training.generator import Generator
from training.published import load_published

# in folders: what training leaves (the newest snapshot), what an edit leaves, what somebody named so
_IN_FOLDERS = ("network.safetensors", "network-snapshot-*.safetensors", "generator.safetensors", "*.pkl")
_SUFFIXES = (".safetensors", ".pkl", ".pickle")

_PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
BUNDLED = _PRETRAINED / "portraits-64.safetensors"
_SHIPPED = ("portraits-64", "portraits-128")  # known by their bare names
BUNDLED_ENCODER = _PRETRAINED / "portraits-64-encoder.safetensors"  # reads that generator's latents
BUNDLED_PRIOR = _PRETRAINED / "prior-64"
network_option = click.option(  # of the scripts that show and edit portraits
    "--network",
    type=click.Path(path_type=Path),
    default=BUNDLED,
    help="Generator: portraits-128, a .safetensors, published .pkl or run folder, Hub name OWNER/REPO/FILE.",
    show_default="portraits-64",
)


def open_network(source: Path | str, device: torch.device | str = "cpu") -> Generator:
    """The generator that ``source`` names, frozen. A pickle is read without running anything in it."""
    path = find_network(source)
    start = _first_bytes(path)
    if start[8:9] == b"{":  # a safetensors header is JSON after its length
        return Generator.load(path, device)
    if start.startswith(b"PK"):
        raise UserError(
            f"{path} is an archive of torch.save; give the published .pkl, or a .safetensors file"
        )
    if path.suffix == ".safetensors":
        return Generator.load(path, device)  # says what is wrong with it
    return load_published(path).to(device)


def encoder_of(source: Path | str) -> Path | None:
    """The encoder that ships for the generator that ``source`` names, if there is one."""
    return BUNDLED_ENCODER if find_network(source).resolve() == BUNDLED else None


def is_edit(source: Path | str) -> bool:
    """Whether the generator that ``source`` names was learned by an edit."""
    path = find_network(source)
    return path.suffix == ".safetensors" and "edit" in checkpoint.load_meta(path)


def warn_of_edit(source: Path | str) -> None:
    """Warns whoever takes the generator that an edit learned for the edited portrait, which is a blend."""
    if not is_edit(source):
        return
    path = find_network(source)
    latent = path.parent / "latent.npz"
    words = ["--network", checkpoint.load_meta(path)["edit"]["network"]]
    words += ["--latent", str(latent)] if latent.exists() else []
    warnings.warn(
        f"{path} is the generator that an edit learned, which shows the edit everywhere and the rest of the "
        f"portrait changed; to start again from the portrait before the edit: edit.py {shlex.join(words)}",
        stacklevel=2,
    )


def find_network(source: Path | str) -> Path:
    """The file on this disk that ``source`` names; a Hub name is fetched."""
    path = Path(source)
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return path
    text = path.as_posix()
    if text in _SHIPPED:
        return _PRETRAINED / f"{text}.safetensors"
    name = hub_name(text)
    if name is None or path.is_absolute() or path.suffix not in _SUFFIXES or Path(path.parts[0]).is_dir():
        hint = (
            ""
            if path.suffix in _SUFFIXES
            else "; files end in .safetensors or .pkl, and Hub names name a file too"
        )
        raise UserError(f"there is no network {text}{hint}")
    try:
        return fetch(name)
    except UserError as error:
        raise UserError(f"there is no file {text} here; as a name on the Hub: {error}") from None


def _in_folder(folder: Path) -> Path:
    for pattern in _IN_FOLDERS:
        found = sorted(folder.glob(pattern))
        if found:
            return found[-1]
    held = sorted(folder.glob("*.safetensors"))
    if len(held) == 1:
        return held[0]
    which = f": name one of {', '.join(path.name for path in held)}" if held else ""
    raise UserError(
        f"the folder {folder} has no network.safetensors or network-snapshot-*.safetensors{which}"
    )


def _first_bytes(path: Path) -> bytes:
    try:
        with open(os.fspath(path), "rb") as file:
            return file.read(16)
    except OSError as error:
        raise UserError(f"cannot read the network {path}: {error.strerror or error}") from error
