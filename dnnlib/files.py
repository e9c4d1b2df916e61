"""Files that are either complete or not there at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Makes a folder for results, with those above it, unless it is there; UserError where that cannot be or
    nothing can be written to it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # what is in the way may also be above it
        blocked = next((p for p in (path, *path.parents) if os.path.exists(p) and not os.path.isdir(p)), None)
        reason = error.strerror or error if blocked is None else f"{blocked} is a file"
        raise UserError(f"cannot make the folder {path} for results: {reason}; give another") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"cannot write into the folder {path}: give another, or change its permissions")
    return path


def free_folder(wanted: Path, results: Sequence[str]) -> Path:
    """Where the results of minutes of work go without replacing others: the first of wanted, wanted-2,
    wanted-3 ... that holds none of the files ``results``. Name all that cannot be had back at once: work that
    is stopped while it writes leaves some of them."""
    place = wanted.resolve() if wanted.name in ("", "..") else wanted
    numbered = (place.with_name(f"{place.name}-{number}") for number in itertools.count(2))
    return next(
        folder
        for folder in itertools.chain([wanted], numbered)
        if not any((folder / name).exists() for name in results)
    )


def check_writable(path: str | os.PathLike[str]) -> None:
    """Makes the folder of a file to be written later; UserError where the file could not be written."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file to write")
    make_folder(path.parent)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; after the block it takes the place of ``path``.

    When the block raises, the temporary file is removed and an older ``path`` stays as it was. A missing
    folder is made. The suffix is kept because many writers choose their format by it.
    """
    path = Path(path)
    check_writable(path)
    # in the same folder: os.replace is atomic only within one file system
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return stream_digest(path, hashlib.sha256())


def stream_digest(path: str | os.PathLike[str], state: hashlib._Hash) -> str:
    """The hexadecimal digest of a file's bytes after what ``state`` has seen already."""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as JSON, atomically. JSON has neither nan nor infinity: both become null."""
    text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def claim_folder(folder: Path, options: Mapping[str, Any], name: str = "settings.json") -> None:
    """Writes what decides the content of a folder that is filled by and by, in one run or several, to its
    file ``name``; UserError where it was begun with other options: the folder would mix both."""
    path = folder / name
    if not path.exists():
        write_json(path, options)
        return
    found, wanted = read_json(path), json.loads(json.dumps(options))  # as they are read again
    if found != wanted:
        raise UserError(
            f"{folder} was begun with {found}, not {wanted}: give the same options or another --outdir"
        )


def finite(value: Any) -> Any:
    """``value`` with None in the place of every nan and infinity, in mappings and lists of any depth."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; one that is missing or broken is a :class:`UserError` that says where."""
    path = Path(path)
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def parse_json(data: bytes, name: str) -> Any:
    """Parse the JSON text ``data``; ``name`` says in an error message where it came from."""
    try:
        return json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not JSON: it is not UTF-8 text") from error
