"""Runs: resuming, other settings, lost pictures, workers that die."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from datasets.portraits import BUNDLED, run
from datasets.portraits.__main__ import main
from dnnlib.errors import UserError
from dnnlib.files import read_json, write_json

KINDS = ("images", "masks", "normals", "depth")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def pixels(folder: Path, kind: str, index: int) -> np.ndarray:
    return np.asarray(Image.open(folder / kind / f"{run.stem(index)}.png")).astype(float)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run as if stopped after picture 0 of the bundled set, in which picture 1 was lost."""
    folder = tmp_path / "set"
    for path in BUNDLED.glob(f"*/{run.stem(0)}.*"):
        copy = folder / path.relative_to(BUNDLED)
        copy.parent.mkdir(parents=True)
        shutil.copy(path, copy)
    shutil.copy(BUNDLED / "settings.json", folder)
    write_json(folder / "lost.json", {"1": "the worker ended with exit code -11"})
    return folder


@pytest.mark.skipif(
    not (importlib.util.find_spec("mitsuba") and importlib.util.find_spec("anny")),
    reason="needs pip install '.[portraits]'",
)
def test_command_goes_on_and_draws_the_bundled_pictures(begun: Path):
    settings = read_json(BUNDLED / "settings.json")
    first = begun / "images" / f"{run.stem(0)}.png"
    written = first.stat().st_mtime_ns
    options = ("--size", settings["size"], "--samples", settings["samples"], "--workers", 1)
    result = call("--count", 3, "--outdir", begun, *options)
    assert result.exit_code == 0, result.output
    assert "2 pictures" in result.output and "1 lost" in result.output
    assert first.stat().st_mtime_ns == written
    index, bundled = read_json(begun / "dataset.json"), read_json(BUNDLED / "dataset.json")
    assert index["labels"] == [bundled["labels"][0], bundled["labels"][2]]
    assert index["captions"] == {name: bundled["captions"][name] for name, _ in index["labels"]}
    for kind in KINDS:  # another machine's exp and sin may move an edge by a ray
        same = pixels(begun, kind, 2) == pixels(BUNDLED, kind, 2)
        assert same.mean() > 0.98, kind


def test_a_folder_holds_one_set(begun: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "load_mitsuba", lambda: None)
    monkeypatch.setattr(run, "anny_data", lambda: None)
    result = call("--count", 3, "--outdir", begun, "--size", 32)
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1
    assert "'size': 64" in result.output and "--outdir" in result.output


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "load_mitsuba", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '\.\[portraits\]'"):
        run.run(tmp_path, 1, run.Settings(32, 1, 0), workers=1)


def test_a_dead_worker_costs_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "load_mitsuba", lambda: None)
    monkeypatch.setattr(run, "anny_data", lambda: None)
    monkeypatch.syspath_prepend(Path(__file__).parent)  # processes that are spawned inherit it
    monkeypatch.setattr(run, "_work", importlib.import_module("fake_worker").work)
    complete, lost = run.run(tmp_path, 3, run.Settings(size=32, samples=1, seed=0), workers=1)
    assert complete == 2 and list(lost) == ["1"] and "exit code 11" in lost["1"]
    assert read_json(tmp_path / "lost.json") == lost
    names = [name for name, _ in read_json(tmp_path / "dataset.json")["labels"]]
    assert names == [f"{run.stem(index)}.png" for index in (0, 2)]


def test_workers_that_never_draw_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "load_mitsuba", lambda: None)
    monkeypatch.setattr(run, "anny_data", lambda: None)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(run, "_work", importlib.import_module("fake_worker").never)
    with pytest.raises(UserError, match="exit code 7"):
        run.run(tmp_path, 30, run.Settings(size=32, samples=1, seed=0), workers=2)
    assert read_json(tmp_path / "lost.json") == {}


def test_runs_into_one_folder_are_one_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "load_mitsuba", lambda: None)
    monkeypatch.setattr(run, "anny_data", lambda: None)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(run, "_work", importlib.import_module("fake_worker").work)
    settings = run.Settings(size=32, samples=1, seed=0)
    for start, count in ((2, 2), (1000, 1), (2, 1)):
        complete, lost = run.run(tmp_path, count, settings, workers=1, start=start)
        assert (complete, lost) == (count, {})
    names = [name for name, _ in read_json(tmp_path / "dataset.json")["labels"]]
    assert names == [f"{run.stem(index)}.png" for index in (2, 3, 1000)]
