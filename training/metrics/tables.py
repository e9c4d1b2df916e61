"""Scores for people and for programs: a table on the screen, and a JSON file."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dnnlib.files import write_json
from torch_utils.device import peak_memory_mb
from training.editing.report import versions


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores by source, one line per number: names left, a column per source; nested numbers are indented."""
    columns = {source: dict(_flat(values)) for source, values in scores.items()}
    rows = list(dict.fromkeys(name for column in columns.values() for name in column))
    cells = [["", *columns]]
    cells += [[name, *(_text(column.get(name)) for column in columns.values())] for name in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}: ")
        elif value is not None:
            found.append((f"{prefix}{name}", value))
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)


class Stopwatch:
    """Seconds since it was made, of the wall and of this process."""

    def __init__(self) -> None:
        self._wall, self._process = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": round(time.monotonic() - self._wall, 1),
            "process_seconds": round(time.process_time() - self._process, 1),
        }


def write_scores(
    path: Path, command: str, scores: Mapping[str, Any], watch: Stopwatch, device: str, **settings: Any
) -> None:
    """Everything that is needed to know what the numbers are of. Numbers that are none become null.

    ``peak_memory_mb`` is of the whole command, but where it made edits: then since the last of them began.
    """
    write_json(
        path,
        {
            "command": command,
            **settings,
            "scores": rounded(scores),
            **watch.read(),
            "peak_memory_mb": round(peak_memory_mb(torch.device(device)), 1),
            "machine": {
                "device": device,
                "processor": _processor(),
                "threads": torch.get_num_threads(),
            },
            "versions": versions(),
        },
    )


def rounded(value: Any) -> Any:
    """Floats in mappings and lists of any depth, to six digits."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _processor() -> str:
    """Model name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical cores" if names else platform.machine()
