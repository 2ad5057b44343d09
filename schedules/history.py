"""Which knobs a kernel gets: those that a history of tuning knows, within `apply_history`, else the defaults.

A history reaches the passes as TVM's own does, by a scope around the compilation rather than through every
function between; nothing outlives the scope.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from schedules.cpu import Isa
from schedules.families import Workload, default_knobs
from schedules.knobs import Knobs


class History(Protocol):
    """Knows the knobs of workloads."""

    def knobs(self, workload: Workload) -> Knobs | None:
        """Return the knobs for a kernel that is about to be generated, None if the defaults should stay."""


class Recorder:
    """A history that knows nothing, and notes what it is asked for.

    Attributes
    ----------
    workloads : dict of None
        In order, each once.
    """

    def __init__(self) -> None:
        """Start with nothing noted."""
        self.workloads: dict[Workload, None] = {}

    def knobs(self, workload: Workload) -> None:
        """Note a workload."""
        self.workloads[workload] = None


_current: ContextVar[History | None] = ContextVar("history", default=None)


@contextmanager
def apply_history(history: History) -> Iterator[None]:
    """Let kernels that are generated within the scope have the knobs that `history` gives."""
    token = _current.set(history)
    try:
        yield
    finally:
        _current.reset(token)


def chosen_knobs(family: str, isa: Isa, shape: tuple[int, ...], threads: int) -> Knobs:
    """Return the knobs for a kernel of a family of `schedules.families`."""
    workload, history = Workload(family, shape, isa.records, threads), _current.get()
    found = history.knobs(workload) if history else None
    return default_knobs(workload) if found is None else found
