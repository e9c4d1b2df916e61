"""Starts a script in the processes of one group, as torchrun does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_in_group(script: Path, world: int, *arguments: str | Path) -> None:
    """Runs ``script`` in ``world`` processes; all of them must end well within two minutes."""

    def start(rank: int) -> subprocess.Popen:
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            # below the ports that systems hand out by themselves, and another one each time
            "MASTER_PORT": str(20000 + os.getpid() % 10000 + world),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        return subprocess.Popen([sys.executable, str(script), *map(str, arguments)], env=environment)

    processes = [start(rank) for rank in range(world)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * world
    finally:
        for process in processes:
            process.kill()
