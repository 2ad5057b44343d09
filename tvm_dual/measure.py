"""Timing libraries in this process: interleaved, on real inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tvm_dual.calibration import InputStream
from tvm_dual.library import DualLibrary

#: Turns per library, and calls per turn.
ROUNDS, CALLS = 7, 60
#: Seconds of a turn from which on it is given fewer calls, such as of long sequences.
TURN_SECONDS = 0.5
#: Streams at most that open rows are counted over, and calls of all of them.
OPEN_STREAMS, OPEN_CALLS = 40, 8000


def median_microseconds(libraries: list[DualLibrary], stream: InputStream, rounds: int = ROUNDS) -> list[float]:
    """Return the median time of a call of each library, in microseconds.

    Parameters
    ----------
    libraries : list of DualLibrary
    stream : InputStream
        All libraries see the same calls.
    rounds : int
        Turns that each library gets; turns alternate, so that a slow spell of the machine hits all.
    """
    runs = [library.stream() for library in libraries]
    # Calls before the first turn warm caches up and say how long one takes.
    calls = min(CALLS, max(1, int(TURN_SECONDS / max(_times(run, stream[:2])[-1] for run in runs))))
    for run in runs:
        _times(run, stream[:calls])
    medians: list[list[float]] = [[] for _ in libraries]
    for turn in range(1, rounds + 1):
        start = turn * calls % max(1, len(stream) - calls)
        for run, found in zip(runs, medians, strict=True):
            found.append(float(np.median(_times(run, stream[start : start + calls]))) * 1e6)
    # A busy neighbour only ever adds time, so the lower half of the turns says more than all of them.
    return [float(np.median(sorted(found)[: len(found) // 2 + 1])) for found in medians]


def _times(run: Callable, calls: Iterable[tuple[np.ndarray, ...]]) -> list[float]:
    """Return the seconds that each call takes."""
    times = []
    for call in calls:
        begin = time.perf_counter_ns()
        run(*call)
        times.append((time.perf_counter_ns() - begin) / 1e9)
    return times


def open_share(library: DualLibrary, streams: Sequence[InputStream]) -> dict[str, float]:
    """Return open rows / all rows of each gated site, over `OPEN_CALLS` first calls of up to `OPEN_STREAMS` streams."""
    streams = streams[:: -(-len(streams) // OPEN_STREAMS)]
    streams = [stream[: OPEN_CALLS // len(streams)] for stream in streams]
    opened = dict.fromkeys(library.all_rows(), 0)
    for stream in streams:
        run = library.stream()
        for call in stream:
            run(*call)
            for name, rows in library.last_open_rows().items():
                opened[name] += rows
    calls = sum(map(len, streams))
    return {name: opened[name] / (calls * rows) for name, rows in library.all_rows().items()}
