"""Learning curves: means of scalars between two log lines, to stats.jsonl and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from dnnlib.files import atomic_path, finite

try:  # a convenience: training works without it
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    SummaryWriter = None

FILE = "stats.jsonl"


class Curves:
    """Collects scalars during steps without waiting for the device, and gives their means when asked.

    Sums are changed where they lie, so that a recorded step (:mod:`training.graphs`) adds to them as well.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # (2,) each: sum and number of values

    def add(self, name: str, value: Tensor) -> None:
        """Adds a value; of a tensor of several, their mean."""
        value = value.detach().float().mean()
        if name not in self._sums:
            self._sums[name] = value.new_zeros(2)
        self._sums[name] += torch.stack([value, torch.ones_like(value)])

    def collect(self) -> dict[str, float]:
        """Means since the last call, by name; starts anew. In several processes, of this one's share."""
        if not self._sums:
            return {}
        values = torch.stack(list(self._sums.values())).tolist()
        torch._foreach_zero_(list(self._sums.values()))
        pairs = zip(self._sums, values, strict=True)
        return {name: total / count for name, (total, count) in pairs if count}


class CurveWriter:
    """Appends lines to OUTDIR/stats.jsonl and to TensorBoard's event files beside it."""

    def __init__(self, outdir: Path, images: int) -> None:
        """``images``: where the run stands. Lines beyond it, written after the resumed state, are dropped."""
        self.path = Path(outdir) / FILE
        self._drop_after(images)
        self._board = SummaryWriter(str(outdir), purge_step=images + 1) if SummaryWriter else None

    def write(self, images: int, values: dict[str, float | int | str]) -> None:
        """One line, at a number of images."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"images": images, **finite(values)}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if not isinstance(value, str):
                    self._board.add_scalar(name, value, images)
            self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _drop_after(self, images: int) -> None:
        kept = [line for line in read_curves(self.path) if line["images"] <= images]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def read_curves(path: Path) -> list[dict]:
    """The lines of a stats.jsonl; a last line that was cut short is left out."""
    if not Path(path).is_file():
        return []
    lines = []
    for text in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
