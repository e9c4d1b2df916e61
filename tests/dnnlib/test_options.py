"""Numbers of the command line."""

from __future__ import annotations

import math
import os
from pathlib import Path

import click
import pytest

from dnnlib.options import PITCH, SEED, TRUNCATION, YAW, Finite, OutFolder, PictureFile


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (YAW, "-0.5", -0.5),
        (YAW, str(math.pi), math.pi),
        (PITCH, str(-math.pi / 2), -math.pi / 2),
        (TRUNCATION, "0.7", 0.7),
        (SEED, str(2**32 - 1), 2**32 - 1),
        (Finite(min=0), "1e3", 1000.0),
    ],
)
def test_numbers_in_range_are_taken(kind, text, value):
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (YAW, "30", "give radians"),
        (PITCH, "2", "give radians"),
        (YAW, "nan", "not a number"),
        (PITCH, "inf", "is not"),
        (TRUNCATION, "nan", "not a number"),
        (TRUNCATION, "1e30", "range"),
        (Finite(min=0), "inf", "not a number"),
        (Finite(min=0), "-1", "range"),
        (Finite(0, 1, min_open=True), "nan", "not a number"),
        (SEED, str(2**32), "range"),
    ],
)
def test_others_are_refused(kind, text, said):
    with pytest.raises(click.BadParameter, match=said):
        kind.convert(text, None, None)


def test_pictures_are_named_by_their_format():
    kind = PictureFile((".png", ".svg"))
    assert kind.convert("out/a.PNG", None, None).name == "a.PNG"
    for name in ("a", "a.foo", "png"):
        with pytest.raises(click.BadParameter, match="end its name in .png or .svg"):
            kind.convert(name, None, None)


def test_a_folder_without_a_name_is_refused() -> None:
    assert OutFolder().convert("out/a", None, None) == Path("out/a")
    assert OutFolder().convert(".", None, None) == Path(".")
    for empty in ("", " "):
        with pytest.raises(click.BadParameter, match="it is empty"):
            OutFolder().convert(empty, None, None)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for name in ("file", "file/a/b", tmp_path / "file" / "a"):
        with pytest.raises(click.BadParameter, match="file is a file: name another folder"):
            OutFolder().convert(name, None, None)
    with pytest.raises(click.BadParameter, match="cannot be made: File name too long; name another"):
        OutFolder().convert("x" * 300, None, None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(click.BadParameter, match=f"nothing can be written into {tmp_path}"):
        OutFolder().convert("out/a", None, None)
    assert not Path("out").exists()
