"""When a run is asked to stop before its end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from torch_utils import distributed


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which batch systems and `timeout` send, raises KeyboardInterrupt as Ctrl-C does: what works on
    that long keeps what there is."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopSignals:
    """SIGINT, SIGTERM or a time limit: the step in hand is finished, then the run ends in good order."""

    def __init__(self, minutes: float | None, device: torch.device) -> None:
        self._device = device
        self._deadline = None if minutes is None else time.monotonic() + minutes * 60
        self._received = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def asked(self) -> bool:
        """Whether to stop; all processes agree."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        asked = self._received or late
        if distributed.world_size() == 1:
            return asked
        vote = torch.tensor(float(asked), device=self._device)
        return bool(distributed.all_reduce_mean(vote) > 0)

    def _receive(self, *_: object) -> None:
        self._received = True
        self._restore()  # a second signal ends the program at once
        if distributed.is_main():
            print(
                "\nstopping after the step in hand, to save it; again ends it at once, unsaved",
                file=sys.stderr,
            )

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
