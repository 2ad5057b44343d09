"""Run several engines side by side: one pinned process each, measured in turns, over the same frames."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from benchmarks.engine_process import EngineProcess, EngineSpec
from benchmarks.results import write_json
from tvm_dual.errors import DataError

__all__ = ["EngineSpec", "Harness", "Progress", "rich_progress", "write_json"]

Progress = Callable[[str, int, int], None]
"""Called with what was just done, how many turns are done, and how many there are."""


class Harness(AbstractContextManager):
    """The engines of one suite, loaded and waiting.

    Use it as a context manager; leaving it ends every process. An engine that raises, dies or does not answer in
    time is left out from then on, and its row says why.

    Parameters
    ----------
    specs : sequence of EngineSpec
        The engines, in the order of the rows.
    threads : int
        Cores that every engine is pinned to: the first ones this process may use.
    timeout_s : float
        Longest time for one request: a load, a turn, or a clip.
    settle_s : float
        Pause before each turn, in which thread pools of the engine before stop spinning.
    progress : Progress, optional
        Told of each engine loaded and each turn measured.

    Raises
    ------
    tvm_dual.errors.DataError
        If the machine has fewer cores than threads.
    """

    def __init__(
        self,
        specs: Sequence[EngineSpec],
        threads: int = 1,
        *,
        timeout_s: float = 120.0,
        settle_s: float = 0.1,
        progress: Progress | None = None,
    ):
        cores = sorted(os.sched_getaffinity(0))
        counts = [spec.threads or threads for spec in specs]
        for count in (threads, *counts):
            if not 1 <= count <= len(cores):
                raise DataError(
                    f"threads is {count}, but this process may use {len(cores)} cores; choose 1 to {len(cores)}"
                )
        self._settle_s = settle_s
        self._tell = progress or (lambda label, done, total: None)
        self._children: list[EngineProcess] = []
        try:
            for index, (spec, count) in enumerate(zip(specs, counts, strict=True)):
                self._tell(f"loading {spec.label}", index, len(specs))
                self._children.append(EngineProcess(spec, cores[:count], timeout_s))
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process."""
        for child in self._children:
            child.stop()

    def measure(self, frames: np.ndarray, rounds: int = 5, steps: int = 200, warmup: int = 20) -> None:
        """Time every engine over the same stream, in turns.

        Parameters
        ----------
        frames : numpy.ndarray
            float32, first axis time; `step` gets one entry at a time. When they end the stream starts over, the
            state carried on.
        rounds, steps, warmup : int
            Turns of each engine, timed frames per turn, and untimed frames before those; of an engine that takes
            sequences, as many sequences as hold that many frames.
        """
        if len(frames) == 0 or rounds < 1 or steps < 1:
            raise DataError(
                f"nothing to measure: {len(frames)} frames, {rounds} rounds of {steps} steps; give at least 1"
            )
        for child in self._children:
            child.ask("stream", frames=child.blocks(frames))
            child.turns = []
        total = rounds * len(self._children)
        for turn in range(total):
            child = self._children[turn % len(self._children)]
            time.sleep(self._settle_s)
            sequence = child.spec.sequence
            result = child.ask("measure", steps=-(-steps // sequence), warmup=-(-warmup // sequence))
            if result is not None:
                child.turns.append(result)
            self._tell(f"round {turn // len(self._children) + 1} of {rounds}: {child.spec.label}", turn + 1, total)

    def outputs(self, frames_by_clip: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray] | None]:
        """Run every clip from the reset state on every engine.

        Parameters
        ----------
        frames_by_clip : mapping of str to numpy.ndarray
            float32 (frames, features) each.

        Returns
        -------
        list
            Per engine, in the order of the specs: float32 (frames, outputs) by clip, or None for one that failed.
        """
        return [self.outputs_of(index, frames_by_clip) for index in range(len(self._children))]

    def outputs_of(self, index: int, frames_by_clip: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """`outputs` of the engine at one position of the specs."""
        child = self._children[index]
        clips = {name: child.ask("outputs", frames=child.blocks(frames)) for name, frames in frames_by_clip.items()}
        if child.error or child.spec.sequence == 1:
            return None if child.error else clips
        return {name: np.concatenate(blocks)[: len(frames_by_clip[name])] for name, blocks in clips.items()}

    def rows(self) -> list[dict[str, Any]]:
        """The rows so far, JSON-able, in the order of the specs.

        Returns
        -------
        list of dict
            engine, mode, precision, sequence where that is more than one, and threads where an engine has its own;
            median_ms and p95_ms per frame of a measured engine, those of each round in rounds_ms and rounds_p95_ms;
            load_seconds, peak_resident_bytes, idle_cpu_ms (CPU time per
            turn spent while others were measured: near zero, or the measurement was disturbed); the engine's own
            facts. Of a failed one, "error" instead.
        """
        return [child.row() for child in self._children]


@contextmanager
def rich_progress() -> Iterator[Progress]:
    """A progress bar on the terminal, as the callback that `Harness` takes."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    # It redraws between turns alone: a refreshing thread would run on the cores being measured.
    with Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), auto_refresh=False) as bar:
        task = bar.add_task("", total=None)

        def tell(label: str, done: int, total: int) -> None:
            bar.update(task, description=label, completed=done, total=total, refresh=True)

        yield tell
