"""What --network may be."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from dnnlib import config as config_files
from dnnlib import download
from dnnlib.errors import UserError
from tests.published_files import write_mate3d
from torch_utils.legacy.__main__ import convert
from training.config import TrainConfig
from training.generator import Generator
from training.network_source import find_network, open_network, warn_of_edit

ROOT = Path(__file__).parents[2]


def same(a: Generator, b: Generator) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Generator]:
    folder = tmp_path_factory.mktemp("published")
    return folder / "cat.pkl", write_mate3d(folder / "cat.pkl")


def test_files_folders_pickles_and_hub_names(generator, tmp_path: Path, monkeypatch) -> None:
    pickled, ours = generator
    ours.save(tmp_path / "run" / "network-snapshot-000100.safetensors")
    (tmp_path / "run" / "network-snapshot-000050.safetensors").write_bytes(b"older")
    ours.save(tmp_path / "edit" / "generator.safetensors")
    convert.callback(pickled, tmp_path / "converted.safetensors")
    monkeypatch.setenv("MATE3D_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "Ellis" / "MaTe3D" / "cats" / "model.pkl"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(pickled.read_bytes())
    monkeypatch.chdir(tmp_path)
    sources = (pickled, "run", "edit", "converted.safetensors", "Ellis/MaTe3D/cats/model.pkl", pickled.parent)
    for source in sources:
        opened = open_network(source)
        assert same(opened, ours), source
        assert not opened.training and not any(p.requires_grad for p in opened.parameters())


def test_what_an_edit_learned_is_not_the_edited_portrait(generator, tmp_path: Path) -> None:
    _, ours = generator
    ours.save(
        tmp_path / "edit" / "generator.safetensors", extra={"edit": {"network": "my faces.safetensors"}}
    )
    (tmp_path / "edit" / "latent.npz").write_bytes(b"")
    found = f"--network 'my faces.safetensors' --latent {tmp_path}/edit/latent.npz"
    with pytest.warns(UserWarning, match="the rest of the portrait changed") as caught:
        warn_of_edit(tmp_path / "edit")
    assert len(caught) == 1 and found in str(caught[0].message)
    ours.save(tmp_path / "run" / "network.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_edit(tmp_path / "run")


@pytest.mark.parametrize("name", ["portraits-64", "portraits-128"])
def test_shipped_generators_are_those_of_their_configurations(name: str) -> None:
    config = config_files.load(TrainConfig, ROOT / "configs" / f"{name}.yaml")
    assert open_network(name).config == config.generator


def test_a_name_of_the_hub_that_is_not_here(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MATE3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"fetch https://huggingface.co/Ellis/MaTe3D/resolve/main/a.pkl .* as"
    ):
        find_network("Ellis/MaTe3D/a.pkl")
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        UserError, match="^there is no network runs/mine/a.safetensors$"
    ):  # a slip, not a name
        find_network("runs/mine/a.safetensors")


@pytest.mark.parametrize("source", ["absent.safetensors", "Ellis/MaTe3D", "absent", "/absent/a/b.pkl"])
def test_what_is_nowhere(source: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no network"):
        open_network(source)


def test_what_is_no_network(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pt")
    (tmp_path / "b.safetensors").write_bytes(b"\x80\x04N.")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("a.pt", "archive of torch.save"),
        ("b.safetensors", "safetensors"),
        ("empty", "has no"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_network(tmp_path / name)
        assert "\n" not in str(error.value)
