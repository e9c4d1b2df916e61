"""What torch reads from the environment is set before torch is there, whichever package comes first."""

from __future__ import annotations

import subprocess
import sys

import pytest

SEEN = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("THP_MEM_ALLOC_ENABLE"))
            sys.exit()
sys.meta_path.insert(0, Watch())
"""


@pytest.mark.parametrize(
    "module",
    ["datasets.masked_images", "training.generator", "torch_utils.checkpoint", "edit", "invert"],
)
def test_it_is_set_before_torch_is_imported(module, root, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", f"{SEEN}\nimport {module}"]
    seen = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
    assert seen.stdout.split() == ["10000", "1"], seen.stderr
