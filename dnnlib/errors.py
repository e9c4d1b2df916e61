"""Errors that a user can act on, and the one place where scripts turn them into an exit code."""

from __future__ import annotations

import difflib
import errno
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_ROOT = Path(__file__).resolve().parents[1]


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do."""


class _CommandFailed(click.ClickException):
    """What click prints as ``Error: message`` before it ends the program with code 2."""

    exit_code = 2


def user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate the function of a click command: a :class:`UserError` ends it with one line and exit code 2.

    A file that cannot be read or written, where nobody foresaw it, does the same.

    ::

        @click.command()
        @click.option("--data")
        @user_errors
        def main(data): ...
    """

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _plain_warnings():
                return command(*args, **kwargs)
        except UserError as error:
            raise _CommandFailed(one_line(error)) from error
        except OSError as error:
            # a full disk, a folder that may not be written: what nobody foresaw, and no fault of this program
            if error.filename is None and error.errno != errno.ENOSPC:
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            reason = f"{where}{error.strerror or error}"
            raise _CommandFailed(f"{reason}: make room, or give another place") from error

    return guarded


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings that this project gives a user are one line, without the place in its code."""
    usual = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        place = Path(filename)  # the README's environment lies in the clone
        ours = place.is_relative_to(_ROOT) and "site-packages" not in place.parts
        if category is UserWarning and ours:
            return f"Warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def one_line(error: UserError) -> str:
    """The message of ``error`` without the traceback that a torch DataLoader worker wraps around it."""
    message = str(error)
    if message.startswith("Caught ") and "DataLoader worker" in message.split("\n", 1)[0]:
        # the worker's traceback ends in "dnnlib.errors.UserError: the message"
        message = message.rstrip().rsplit("\n", 1)[-1].partition("UserError: ")[2] or message
    return message


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like ``word``, or None where nothing comes near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End of an error message about an unknown word: names the nearest known one, else all of them."""
    known = list(known)
    near = nearest(word, known)
    return f"did you mean '{near}'?" if near else f"known are: {', '.join(known)}"


def named(option: str, text: str | None, known: Mapping[str, T]) -> list[T]:
    """What names separated by commas stand for, in their order; None: all of ``known``.

    Raises UserError that names the option, and the nearest name to one that is not known.
    """
    if text is None:
        return list(known.values())
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"{option}: there is no '{name}'; {did_you_mean(name, known)}")
    return [known[name] for name in names]
