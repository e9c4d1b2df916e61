"""Steps recorded once as CUDA graphs and replayed: a GPU then no longer waits for Python between its kernels.

A step of a small network is thousands of kernels of a few microseconds each, and Python needs longer to start
one than the GPU to run it. A CUDA graph starts all of them at once. What is recorded must do the same work on
the same memory every time: inputs are copied to where they lay, random numbers are drawn anew, parameters,
optimisers, running averages and :class:`training.curves.Curves` are changed in place. Python does not run
again, so counters and schedules stay outside, or are tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 2  # calls before the recording: they allocate what lasts, and choose algorithms


class Recorder:
    """Runs functions of tensors, and records those that come with the same sizes and settings again.

    Arguments may be tensors, dataclasses, tuples and lists of them, and anything else that can be compared,
    which then is part of what was recorded: another value makes a new recording. Results are overwritten by
    the next call.
    """

    def __init__(
        self, device: torch.device | str = "cpu", enabled: bool = False, *, used_at_once: bool = False
    ) -> None:
        """``enabled`` counts on CUDA only; elsewhere functions simply run.

        ``used_at_once``: each result is used up before the next function runs. Then all recordings may work
        in the same memory, where otherwise each has its own.
        """
        self.enabled = enabled and torch.device(device).type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.enabled else None
        self._pool = torch.cuda.graph_pool_handle() if self.enabled and used_at_once else None
        self._records: dict[str, _Record] = {}

    @contextmanager
    def stream(self) -> Iterator[None]:
        """All steps must run inside this: what is recorded and what leads up to it share one stream."""
        if not self.enabled:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:  # what was begun before Ctrl-C goes on meanwhile
            torch.cuda.current_stream().wait_stream(self._stream)

    def run(self, name: str, function: Callable, *arguments: Any) -> Any:
        """``function(*arguments)``. ``name`` stands for the function, which must be the same every time."""
        if not self.enabled:
            return function(*arguments)
        wanted = _signature(arguments)
        record = self._records.get(name)
        if record is None or record.signature != wanted:
            record = self._records[name] = _Record(wanted, self._pool)
        return record.run(function, arguments)


class _Record:
    """One function with one signature."""

    def __init__(self, signature: tuple, pool: tuple[int, int] | None) -> None:
        self.signature = signature
        self.pool = pool
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.arguments: Any = None
        self.result: Any = None

    def run(self, function: Callable, arguments: tuple) -> Any:
        if self.calls < _WARM_UP:
            self.calls += 1
            return function(*arguments)
        if self.graph is None:
            self.arguments = _map(torch.clone, arguments)
            graph = torch.cuda.CUDAGraph()
            # other threads (of a loader that pins memory) may go on meanwhile
            how = {"stream": torch.cuda.current_stream(), "capture_error_mode": "thread_local"}
            try:
                with torch.cuda.graph(graph, pool=self.pool, **how):
                    self.result = function(*self.arguments)
            except RuntimeError as error:
                if isinstance(error.__context__, KeyboardInterrupt):  # a recording cannot end early
                    raise error.__context__ from None
                raise
            self.graph = graph
        _map(lambda kept, new: kept.copy_(new), self.arguments, arguments)
        self.graph.replay()
        return self.result


def _signature(tree: Any) -> tuple:
    """All of a tree but the values of its tensors."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype, tree.device
    if dataclasses.is_dataclass(tree):
        return type(tree), *(_signature(getattr(tree, f.name)) for f in dataclasses.fields(tree))
    if isinstance(tree, tuple | list):
        return type(tree), *(_signature(each) for each in tree)
    return type(tree), tree


def _map(function: Callable, tree: Any, *others: Any) -> Any:
    """The tree with ``function(tensor, *those at the same place of others)`` for each of its tensors."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if dataclasses.is_dataclass(tree):
        names = [f.name for f in dataclasses.fields(tree)]
        mapped = {n: _map(function, *(getattr(each, n) for each in (tree, *others))) for n in names}
        return dataclasses.replace(tree, **mapped)
    if isinstance(tree, tuple | list):
        return type(tree)(_map(function, *each) for each in zip(tree, *others, strict=True))
    return tree
