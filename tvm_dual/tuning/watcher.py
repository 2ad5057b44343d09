"""Who is told how tuning goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from schedules.families import Workload
from tvm_dual.tuning.records import Record


class Watcher(Protocol):
    """Is told of each step; `tvm_dual.tuning.display` draws them."""

    def begin(self, kernels: int, trials: int) -> None:
        """Take note of the kernels that are about to be searched, and of the trials of all of them."""

    def measured(self, workload: Workload, batch: Sequence[Record], best: float) -> None:
        """Take note of a batch of a kernel, and of its best time so far, relative to the default's."""

    def decided(self, record: Record) -> None:
        """Take note of a verdict."""


class Silent:
    """A watcher that says nothing."""

    def begin(self, kernels: int, trials: int) -> None:
        """Say nothing."""

    def measured(self, workload: Workload, batch: Sequence[Record], best: float) -> None:
        """Say nothing."""

    def decided(self, record: Record) -> None:
        """Say nothing."""
