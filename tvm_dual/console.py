"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Give a callback ``(phase, done, total)`` that draws one bar per phase."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn when something happens: a refreshing thread would run on the cores being measured.
    with Progress(*columns, auto_refresh=False) as bars:
        tasks: dict[str, int] = {}

        def tell(phase: str, done: int, total: int) -> None:
            # "round 2 of 5: engine" and the like count within one bar.
            key = phase.split(":")[0].split(" of ")[0].rstrip("0123456789 ")
            if key not in tasks:
                tasks[key] = bars.add_task(key, total=total)
            last = done >= total
            if last or done % max(1, total // 200) == 0:
                bars.update(tasks[key], completed=done, total=total, refresh=True)

        yield tell
