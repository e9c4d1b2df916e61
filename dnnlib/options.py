"""Kinds of numbers and files on the command line that click does not check by itself."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import click

LARGEST_SEED = 2**32 - 1  # numpy's


class Finite(click.FloatRange):
    """A number from ``min`` to ``max`` that is neither nan nor infinite."""

    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number to work with", param, ctx)
        return number


class Angle(Finite):
    """Radians, at most ``largest`` to both sides; who gives degrees is told so."""

    def __init__(self, largest: float) -> None:
        super().__init__(-largest, largest)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        angle = click.FLOAT.convert(value, param, ctx)
        if math.isfinite(angle) and abs(angle) > self.max:
            self.fail(f"{angle:g} is out of range: give radians, at most {self.max:g}", param, ctx)
        return super().convert(value, param, ctx)


class OutFolder(click.Path):
    """A folder for results on the command line; what cannot be one is known before the work, not after it.
    Without a name it would be the current one, which who has an unset shell variable there does not mean."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        if not os.fspath(value).strip():
            self.fail("it is empty: name a folder, or . for the current one", param, ctx)
        folder = super().convert(value, param, ctx)
        try:
            there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        except OSError as error:  # too long a name, or a folder on the way that may not be looked into
            self.fail(f"{folder} cannot be made: {error.strerror}; name another folder", param, ctx)
        if not there.is_dir():
            self.fail(f"{there} is a file: name another folder", param, ctx)
        if not os.access(there, os.W_OK | os.X_OK):
            self.fail(f"nothing can be written into {there}: name another folder", param, ctx)
        return folder


class PictureFile(click.Path):
    """A picture to write, in one of the given formats: known before the work, not when it is saved."""

    name = "picture"

    def __init__(self, suffixes: Sequence[str]) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self.suffixes = suffixes

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = super().convert(value, param, ctx)
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{path} is to be a picture: end its name in {' or '.join(self.suffixes)}", param, ctx)
        return path


YAW = Angle(3.1416)  # all round
PITCH = Angle(1.5708)  # from pole to pole
TRUNCATION = Finite(min=-10, max=10)
SEED = click.IntRange(min=0, max=LARGEST_SEED)
