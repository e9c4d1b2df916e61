"""Ten thousand damaged and hostile pickles: nothing runs, crashes or hangs, memory is bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES, SEED = 10_000, 2312


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process in Linux's way")
def test_damaged_files(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The process ends itself if anything is imported, executed or started; memory and time are limited."""
    run = [sys.executable, "-m", "tests.torch_utils.legacy.fuzz", str(tmp_path), str(FILES), str(SEED)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, cwd=root, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\nfuzzed pickles: {counts}")
    assert counts["files"] == FILES == counts["read"] + counts["refused"] and counts["seed"] == SEED
    assert counts["refused"] > FILES / 2  # the damage matters
    assert counts["read"] > FILES / 100  # and is not always so great that only the first check is tested
    assert counts["slowest"] < 5  # seconds of one file
