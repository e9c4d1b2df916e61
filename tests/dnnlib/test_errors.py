"""dnnlib/errors.py: what a user sees when something is wrong."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from dnnlib import errors
from dnnlib.errors import UserError, did_you_mean, named, one_line, user_errors


@click.command()
@click.option("--fail", type=click.Choice(["user", "bug"]))
@user_errors
def command(fail: str | None) -> None:
    """A command that fails on demand."""
    if fail == "user":
        raise UserError("photo.png is 3x3, expected 4x4: resize it")
    if fail == "bug":
        raise ZeroDivisionError
    click.echo("done")


def test_a_user_error_is_one_line_and_code_2() -> None:
    result = CliRunner().invoke(command, ["--fail", "user"])
    assert result.exit_code == 2
    assert result.output == "Error: photo.png is 3x3, expected 4x4: resize it\n"


def test_a_bug_keeps_its_traceback_and_success_is_0() -> None:
    assert isinstance(CliRunner().invoke(command, ["--fail", "bug"]).exception, ZeroDivisionError)
    assert CliRunner().invoke(command).exit_code == 0
    assert "A command that fails" in CliRunner().invoke(command, ["--help"]).output


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise UserError("photo.png is cut short: copy it again")


def test_an_error_from_a_worker_process_stays_one_line() -> None:
    loader = torch.utils.data.DataLoader(Broken(), num_workers=1)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert one_line(caught.value) == "photo.png is cut short: copy it again"


def test_did_you_mean() -> None:
    assert did_you_mean("hiar", ["hair", "hat", "skin"]) == "did you mean 'hair'?"
    assert did_you_mean("zzz", ["hair", "hat"]) == "known are: hair, hat"


def test_names_stand_for_things_in_their_order():
    known = {"red": 1, "green": 2, "blue": 3}
    assert named("--only", None, known) == [1, 2, 3]
    assert named("--only", "blue, red", known) == [3, 1]
    with pytest.raises(UserError, match="--only: there is no 'gren'; did you mean 'green'"):
        named("--only", "red,gren", known)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device: make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
    ],
)
def test_what_the_system_refuses_is_one_line_too(error, code, said):
    @click.command()
    @user_errors
    def command() -> None:
        raise error

    result = CliRunner().invoke(command)
    assert result.exit_code == code and said in result.output
    assert len(result.output.splitlines()) <= 1


def test_warnings_of_this_project_are_one_line_without_its_code(monkeypatch):
    seen = []
    monkeypatch.setattr(warnings, "showwarning", lambda *w: seen.append(warnings.formatwarning(*w[:4])))

    @click.command()
    @user_errors
    def command() -> None:
        warnings.warn("'zebra' is not known", stacklevel=1)
        for place in ("/elsewhere", Path(errors.__file__).parents[1] / ".venv/lib/site-packages"):
            warnings.warn_explicit("of a library", UserWarning, f"{place}/library.py", 7)
        warnings.warn("for developers", DeprecationWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.formatwarning
        assert CliRunner().invoke(command).exit_code == 0
        assert warnings.formatwarning is before
    assert seen[0] == "Warning: 'zebra' is not known\n"
    assert all("library.py:7: UserWarning" in each for each in seen[1:3]) and "DeprecationWarning" in seen[3]
