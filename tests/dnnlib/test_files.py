"""dnnlib/files.py: a file is complete or absent, whatever stops its writer."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnnlib.errors import UserError
from dnnlib.files import (
    atomic_path,
    claim_folder,
    free_folder,
    make_folder,
    read_json,
    sha256,
    write_json,
)


def test_success_replaces(tmp_path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic_path(path) as temporary:
            assert temporary.suffix == ".txt" and temporary.parent == path.parent
            temporary.write_text(text)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["a.txt"]


def test_results_go_where_there_are_none(tmp_path, monkeypatch) -> None:
    usual, results = tmp_path / "edit", ("latent.npz", "report.json")
    for name in ("edit", "edit-2", "edit-3"):
        folder = free_folder(usual, results)
        assert folder == tmp_path / name
        folder.mkdir()
        assert free_folder(usual, results) == folder  # begun, nothing made
        (folder / results[len(name) % 2]).write_text("{}")  # stopped before the other one, or after it
    monkeypatch.chdir(usual)
    assert free_folder(Path("."), results) == tmp_path / "edit-4"


def test_a_folder_is_filled_with_one_set_of_options(tmp_path) -> None:
    for _ in range(2):
        claim_folder(tmp_path, {"size": 64, "yaws": (-0.1, 0.1)})
    with pytest.raises(UserError, match="begun with.*64.*not.*32.*--outdir"):
        claim_folder(tmp_path, {"size": 32, "yaws": (-0.1, 0.1)})
    assert read_json(tmp_path / "settings.json")["size"] == 64


def test_failure_keeps_what_was_there(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_killed_writer_leaves_no_half_file(tmp_path, root) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    code = (
        "import sys, time\n"
        "from dnnlib.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('{\"ha')\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], cwd=root, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert read_json(path) == {"old": 1}


def test_readers_never_see_half_a_file(tmp_path, root) -> None:
    """One process rewrites a file as fast as it can while another reads it."""
    path = tmp_path / "a.json"
    write_json(path, [0] * 20000)
    code = (
        "import sys\n"
        "from dnnlib.files import write_json\n"
        "for i in range(60): write_json(sys.argv[1], [i] * 20000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], cwd=root)
    reads = 0
    deadline = time.monotonic() + 30
    while writer.poll() is None and time.monotonic() < deadline:
        values = read_json(path)
        assert len(values) == 20000 and len(set(values)) == 1
        reads += 1
    assert writer.wait(30) == 0 and reads > 0
    assert os.listdir(tmp_path) == ["a.json"]


def test_json_errors_say_where(tmp_path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n "b": }')
    with pytest.raises(UserError, match=r"a.json is not JSON: .* at line 2, column 7"):
        read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_json(path)
    with pytest.raises(UserError, match="cannot read .*none.json"):
        read_json(tmp_path / "none.json")


def test_json_round_trip(tmp_path) -> None:
    value = {"name": "Zoë", "numbers": [0.1, 1e-300, 10**30], "none": None}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_numbers_that_are_none_become_null(tmp_path) -> None:
    write_json(tmp_path / "a.json", {"losses": [{"a": math.nan}, (1.5, math.inf)]})
    assert read_json(tmp_path / "a.json") == {"losses": [{"a": None}, [1.5, None]]}


def test_where_nothing_can_be_written_is_said(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "in" / "it"):
        with pytest.raises(UserError, match="cannot make the folder .* for results: .*/file is a file; give"):
            make_folder(place)
    with pytest.raises(UserError, match="cannot make the folder"), atomic_path(tmp_path / "file" / "a.json"):
        raise AssertionError("nothing is written")
    with pytest.raises(UserError, match="is a folder"), atomic_path(tmp_path):
        raise AssertionError("nothing is written")
    assert make_folder(tmp_path / "a" / "b").is_dir()


def test_what_cannot_be_written_has_the_name_that_was_given(tmp_path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError) as error, atomic_path(path) as temporary:
        open(temporary, "rb")  # as where a file system takes no new files
    assert error.value.filename == str(path)


def test_digest_of_a_file_of_several_blocks(tmp_path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
