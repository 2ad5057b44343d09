"""Tuning on the terminal: which kernel, how many trials, how good, how many failed, how much longer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from schedules.families import Workload
from tvm_dual.tuning.records import Record
from tvm_dual.tuning.watcher import Watcher


@contextmanager
def tuning_display() -> Iterator[Watcher]:
    """Give a watcher that keeps one line up to date, and leaves a line for each kernel that is decided."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[found]}"))
    # Redrawn when something happens: a refreshing thread would run on the cores being measured.
    with Progress(*columns, auto_refresh=False) as bars:
        yield _Display(bars)


class _Display:
    """A `Watcher` that draws."""

    def __init__(self, bars) -> None:
        self._bars, self._bar = bars, None
        self._started, self._total, self._done = time.monotonic(), 0, 0
        self._valid = self._failed = 0

    def begin(self, kernels: int, trials: int) -> None:
        self._started, self._total = time.monotonic(), trials
        self._bar = self._bars.add_task(f"{kernels} kernels", total=trials, found="")

    def measured(self, workload: Workload, batch: Sequence[Record], best: float) -> None:
        failed = sum(bool(record.error) for record in batch)
        self._done, self._failed, self._valid = (
            self._done + len(batch),
            self._failed + failed,
            self._valid + len(batch) - failed,
        )
        left = (time.monotonic() - self._started) / self._done * (self._total - self._done)
        speed = f"best {1 / best:.2f}x default" if math.isfinite(best) else "none valid yet"
        text = f"{speed}, {self._valid} valid, {self._failed} failed, {left / 60:.0f}:{left % 60:02.0f} left"
        self._bars.update(self._bar, description=str(workload), completed=self._done, found=text, refresh=True)

    def decided(self, record: Record) -> None:
        verdict = f"{1 / record.ratio:.2f}x default" if record.ratio < 1 else "default stays"
        self._bars.console.print(f"{record.workload}: {verdict}", highlight=False)
