"""A folder or a zip of files, read in the same way."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dnnlib.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Store:
    """Files below a folder, or in a zip, under names with forward slashes relative to its root."""

    def __init__(self, path: str | os.PathLike[str], prefix: str = "") -> None:
        self.path = Path(path)
        self.prefix = prefix  # only names below it, without it: '' or 'images/'
        self._zip: tuple[int, zipfile.ZipFile] | None = None
        if self.path.is_dir():
            self.is_zip = False
        elif self.path.is_file():
            self.is_zip = True
            self._archive()
        else:
            raise UserError(f"there is no folder or zip {self.path}: check the path")

    def within(self, folder: str) -> Store:
        """The part of this store below ``folder``."""
        return Store(self.path, f"{self.prefix}{folder}/")

    def names(self) -> list[str]:
        """All file names, sorted; hidden files and what macOS adds to archives are left out."""
        names = self._archive().namelist() if self.is_zip else self._walk(self.path / self.prefix)
        inside = (name[len(self.prefix) :] for name in names if name.startswith(self.prefix))
        return sorted(name for name in inside if name and not name.endswith("/") and not _hidden(name))

    def images(self) -> list[str]:
        """The names that end like pictures."""
        return [name for name in self.names() if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]

    def has(self, name: str) -> bool:
        """Whether there is a file ``name``, or a folder where it ends in a slash."""
        if self.is_zip:
            full = self.prefix + name
            return any(
                n == full or (full.endswith("/") and n.startswith(full)) for n in self._archive().namelist()
            )
        return os.path.exists(self.path / self.prefix / name)

    def read(self, name: str) -> bytes:
        """The bytes of the file ``name``."""
        try:
            if self.is_zip:
                return self._archive().read(self.prefix + name)
            return (self.path / self.prefix / name).read_bytes()
        except KeyError as error:
            raise UserError(f"{self.path} holds no {self.prefix}{name}") from error
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"cannot read {self.locate(name)}: {error}") from error

    def locate(self, name: str) -> str:
        """``name`` as an error message shows it: with the path of the folder or zip."""
        return f"{self.path}{'!' if self.is_zip else ''}/{self.prefix}{name}"

    def _walk(self, folder: Path) -> Iterator[str]:
        for parent, _, files in os.walk(folder):
            relative = Path(parent).relative_to(self.path).as_posix()
            yield from (name if relative == "." else f"{relative}/{name}" for name in files)

    def _archive(self) -> zipfile.ZipFile:
        # a file position must not be shared with the process that this one was forked from
        if self._zip is None or self._zip[0] != os.getpid():
            try:
                self._zip = (os.getpid(), zipfile.ZipFile(self.path))
            except (zipfile.BadZipFile, OSError) as error:
                message = (
                    f"{self.path} is neither a folder nor a complete zip ({error}): copy or zip it again"
                )
                raise UserError(message) from error
        return self._zip[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}  # an open file cannot travel to another process


def stem(name: str) -> str:
    """``name`` without its suffix, folders kept: what an image and its mask have in common."""
    return str(PurePosixPath(name).with_suffix(""))


def is_file_name(name: Any) -> bool:
    """Whether ``name`` is text that can name a file: "", ".", "/" and numbers do not."""
    return isinstance(name, str) and bool(PurePosixPath(name).name)


def by_stem(names: list[str]) -> dict[str, str]:
    """Names by their stem; of two with the same stem the first in order counts."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(stem(name), name)
    return found


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
