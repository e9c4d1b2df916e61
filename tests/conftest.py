"""What all tests share: the numeric fixtures, a CUDA guard and a sensible number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# tests are many small tensors: on these, more threads than one cost time instead of saving it
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# a loaded machine is no bug
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT.parent / "shared" / "parity"


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the clone."""
    return ROOT


@pytest.fixture(scope="session")
def parity() -> Callable[[str], dict[str, np.ndarray]]:
    """``parity('mapping')`` -> the arrays of ``../shared/parity/mapping.npz``.

    The files are not part of the project: where they are absent, the test is skipped and says so.
    """

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(parity_file(f"{name}.npz")) as arrays:
            return dict(arrays)

    return read


@pytest.fixture(scope="session")
def parity_path() -> Callable[[str], Path]:
    """``parity_path('legacy_cat_tiny.pkl')`` -> path in ``../shared/parity``; skips as `parity` does."""
    return parity_file


def parity_file(name: str) -> Path:
    path = PARITY / name
    if not path.is_file():
        pytest.skip(f"numeric fixture {name} is not there: ../shared/parity is not part of the repository")
    return path


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, in whatever order they run."""
    torch.manual_seed(0)
    np.random.seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
