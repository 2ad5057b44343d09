"""The child's half of the harness: one engine in a process of its own, answering one request at a time."""

from __future__ import annotations

import gc
import importlib
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np


def serve(descriptor: int) -> None:
    """Build the engine that the parent names and answer its requests until it hangs up.

    Parameters
    ----------
    descriptor : int
        File descriptor of the connection. Between requests the process blocks on it. An exception becomes the
        answer ("error", message); every other answer is ("ok", value).
    """
    channel = Connection(descriptor)
    worker = _Worker()
    while True:
        try:
            request, arguments = channel.recv()
        except EOFError:
            return
        try:
            answer = ("ok", getattr(worker, request)(**arguments))
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}")
        channel.send(answer)


class _Worker:
    """The requests, one method each."""

    def __init__(self):
        self._rested = time.process_time_ns()
        self._position = 0

    def load(self, factory: str, arguments: dict) -> float:
        """Build the engine; returns seconds, imports included."""
        start = time.perf_counter()
        module, _, name = factory.partition(":")
        self._engine = getattr(importlib.import_module(module), name)(**arguments)
        return time.perf_counter() - start

    def stream(self, frames: np.ndarray) -> None:
        """Take the frames (first axis) that `measure` walks through, again from the top when they end."""
        self._frames = [np.ascontiguousarray(frame) for frame in frames]
        self._position = 0
        self._engine.reset()
        self._rested = time.process_time_ns()

    def measure(self, steps: int, warmup: int) -> dict:
        """Time `steps` steps of the stream after `warmup` untimed ones, the state carried from request to request.

        Returns nanoseconds per step (int64), and the CPU time that the process spent while it should have slept.
        """
        idle = time.process_time_ns() - self._rested
        for _ in range(warmup):
            self._engine.step(self._next())
        elapsed = np.empty(steps, np.int64)
        clock, step = time.perf_counter_ns, self._engine.step
        gc.collect()
        gc.disable()
        try:
            for index in range(steps):
                frame = self._next()
                start = clock()
                step(frame)
                elapsed[index] = clock() - start
        finally:
            gc.enable()
        self._rested = time.process_time_ns()
        return {"elapsed_ns": elapsed, "idle_ns": idle}

    def outputs(self, frames: np.ndarray) -> np.ndarray:
        """Run one clip from the reset state; float32 (frames, outputs)."""
        self._engine.reset()
        return np.stack([np.array(self._engine.step(np.ascontiguousarray(frame))) for frame in frames])

    def facts(self) -> dict:
        """What the engine says of itself, and the most memory the process has held."""
        own = self._engine.facts() if hasattr(self._engine, "facts") else {}
        return {"peak_resident_bytes": _peak_resident_bytes(), **own}

    def _next(self) -> np.ndarray:
        frame = self._frames[self._position % len(self._frames)]
        self._position += 1
        return frame


def _peak_resident_bytes() -> int:
    """Peak resident memory of this program alone: `getrusage` would count the parent it was forked from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM line")
