"""dnnlib/config.py: what is read equals what was written, and mistakes name the field they meant."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dnnlib import config
from dnnlib.errors import UserError


@dataclass(frozen=True)
class Camera:
    focal: float = 4.26
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.2)


@dataclass(frozen=True)
class Network:
    width: int = 64
    channels: tuple[int, ...] = (256, 128)
    limit: float | None = None
    mode: Literal["small", "large"] = "small"
    camera: Camera = field(default_factory=Camera)

    def __post_init__(self) -> None:
        if self.width < len(self.channels):
            raise UserError(f"network.width is {self.width}, too small")


@dataclass(frozen=True)
class Run:
    network: Network = field(default_factory=Network)
    name: str = "run"
    lr: float = 0.002
    mirror: bool = True
    weights: dict[str, float] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Needy:
    path: str
    size: int = 1


def test_nothing_given_is_the_defaults() -> None:
    assert config.load(Run, {}) == Run()


def test_file_then_overrides(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("network: {width: 32, camera: {focal: 3}}\nlr: 1e-4\n")
    run = config.load(Run, path, ["network.channels=[8, 4, 2]", "network.camera.pivot=[0, 0, 1]", "name=on"])
    assert run.network.width == 32
    assert run.network.camera == Camera(3.0, (0.0, 0.0, 1.0))
    assert isinstance(run.network.camera.focal, float)  # an int is taken for a float
    assert run.network.channels == (8, 4, 2)
    assert run.lr == 1e-4  # YAML itself reads 1e-4 as a string
    assert run.name == "on"  # ... and `on` as true


def test_overrides_are_checked_together() -> None:
    # neither of the two would be valid with the other at its default
    run = config.load(Run, {}, ["network.width=1", "network.channels=[4]"])
    assert run.network.channels == (4,)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_save_and_load(tmp_path, suffix: str) -> None:
    run = Run(Network(8, (1, 2, 3), 0.5, "large", Camera(2.0)), "x", 1e-5, False, {"a": 1.0}, [3, 4])
    path = tmp_path / f"run{suffix}"
    config.save(run, path)
    assert config.load(Run, path) == run
    (json.loads if suffix == ".json" else yaml.safe_load)(path.read_text())  # any other reader gets it too


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20)
floats = st.floats(allow_nan=False, allow_infinity=False)


@given(names, floats, st.booleans(), st.lists(st.integers(), max_size=4), st.none() | floats)
def test_any_values_survive_yaml(name: str, lr: float, mirror: bool, seeds: list[int], limit: float) -> None:
    run = Run(Network(limit=limit), name, lr, mirror, {}, seeds)
    text = yaml.safe_dump(config.to_dict(run))
    assert config.load(Run, yaml.safe_load(text)) == run


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("network.widht", "network.width"),
        ("network.camera.focus", "network.camera.focal"),
        ("nme", "name"),
        ("width", "network.width"),  # the right word in the wrong section
        ("camera.focal", "network.camera.focal"),
    ],
)
def test_misspelt_key_names_the_nearest(key: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"unknown key '{key}'; did you mean '{meant}'\?"):
        config.load(Run, {}, [f"{key}=1"])


def test_misspelt_key_in_a_file_names_file_and_key(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("network: {camera: {focall: 1}}\n")
    message = r"run.yaml: unknown key 'network.camera.focall'; did you mean 'network.camera.focal'\?"
    with pytest.raises(UserError, match=message):
        config.load(Run, path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.width=2.5", "'network.width' is 2.5; it must be a whole number"),
        ("network.width=true", "must be a whole number"),
        ("mirror=1", "must be true or false"),
        ("lr=fast", "must be a number"),
        ("network.camera.pivot=[1, 2]", "must be a list of 3"),
        ("network.channels=[1, x]", r"'network.channels\[1\]' is 'x'; it must be a whole number"),
        ("network.mode=medium", "must be one of small, large"),
        ("network=3", "must be 'key: value' lines"),
        ("lr", "write key=value"),
        ("network.channels=[1, 2", "check its brackets"),
        ("network.width=1", "network.width is 1, too small"),
    ],
)
def test_wrong_values_say_what_is_right(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.load(Run, {}, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "not YAML"),
        ("- 1\n- 2\n", "holds a list"),
        ("lr: 1\nname: x\nlr: 2\n", "'lr' is given twice at line 3"),
        ("lr: 1\n[1, 2]: 3\n", "list or mapping cannot be a key at line 2"),
    ],
)
def test_broken_files(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(Run, path)


def test_missing_file_and_missing_value(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot read the configuration"):
        config.load(Run, tmp_path / "none.yaml")
    with pytest.raises(UserError, match="'path' is missing"):
        config.load(Needy, {"size": 2})


def test_optional_values() -> None:
    assert config.load(Run, {}, ["network.limit=3"]).network.limit == 3.0
    assert config.load(Run, {"network": {"limit": 3}}, ["network.limit=null"]).network.limit is None


def test_file_that_extends_another(tmp_path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common/first.yaml").write_text("lr: 1\nname: a\nnetwork: {width: 8, camera: {focal: 3}}\n")
    (tmp_path / "second.yaml").write_text("extends: common/first.yaml\nname: b\nnetwork: {channels: [1]}\n")
    third = tmp_path / "third.yaml"
    third.write_text("extends: second.yaml\nnetwork: {camera: {pivot: [1, 2, 3]}}\n")
    wanted = Run(Network(8, (1,), camera=Camera(3.0, (1, 2, 3))), name="b", lr=5.0)
    assert config.load(Run, third, ["lr=5"]) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: run.yaml", "run.yaml extends itself"),
        ("extends: [a.yaml]", "must be the path"),
        ("extends: none.yaml", "cannot read the configuration .*none.yaml"),
    ],
)
def test_file_that_extends_nothing(tmp_path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(Run, tmp_path / "run.yaml")


def test_wrong_key_in_an_extended_file_is_found(tmp_path) -> None:
    (tmp_path / "first.yaml").write_text("nmae: a\n")
    (tmp_path / "second.yaml").write_text("extends: first.yaml\n")
    with pytest.raises(UserError, match="unknown key 'nmae'; did you mean 'name'"):
        config.load(Run, tmp_path / "second.yaml")
