"""An engine in a process of its own, pinned to its cores, seen from the process that measures."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import Any

import numpy as np

_BOOT = "import os; os.sched_setaffinity(0, {cores}); from benchmarks.worker import serve; serve({descriptor})"


@dataclass(frozen=True)
class EngineSpec:
    """How to make one engine, in another process.

    Attributes
    ----------
    engine, mode, precision : str
        The row's names, for example "torch", "dense", "fp32".
    factory : str
        "module:callable". The callable gets `arguments` by name and returns an object with `step(frame)`, `reset()`
        and, if it likes, `facts()` (entries for the row).
    arguments : dict
        JSON-able.
    sequence : int
        Frames that one `step` takes. With more than one, `step` takes and gives (sequence, features) and the row's
        times are those per frame.
    threads : int or None
        Cores that the engine is pinned to, if not as many as the harness gives all others.
    """

    engine: str
    mode: str
    precision: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    sequence: int = 1
    threads: int | None = None

    @property
    def label(self) -> str:
        """What progress calls it."""
        length = f", {self.sequence} steps a call" if self.sequence > 1 else ""
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{self.engine} {self.mode} {self.precision}{length}{threads}"


class EngineProcess:
    """One engine's process: an engine that raises, dies or does not answer in time has an ``error`` from then on."""

    def __init__(self, spec: EngineSpec, cores: list[int], timeout_s: float):
        self.spec, self.error, self.turns = spec, None, []
        self._timeout_s = timeout_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._channel, other = Pipe()
        count = str(len(cores))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "TVM_NUM_THREADS": count,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        boot = _BOOT.format(cores=set(cores), descriptor=other.fileno())
        command = [sys.executable, "-c", boot]
        with other:
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL,
                stdout=self._stderr, stderr=self._stderr,
            )  # fmt: skip
        self._load_seconds = self.ask("load", factory=spec.factory, arguments=spec.arguments)

    def ask(self, request: str, **arguments: Any) -> Any:
        """The answer to one request, or None once the engine has failed."""
        if self.error:
            return None
        try:
            self._channel.send((request, arguments))
            if not self._channel.poll(self._timeout_s):
                return self._fail(f"no answer to '{request}' within {self._timeout_s:g} s")
            kind, value = self._channel.recv()
        except (EOFError, ConnectionError):
            return self._fail(self._obituary(request))
        return self._fail(value) if kind == "error" else value

    def blocks(self, frames: np.ndarray) -> np.ndarray:
        """Frames as this engine takes them; zeros fill up the last sequence."""
        length = self.spec.sequence
        if length == 1:
            return frames
        rest = np.zeros((-len(frames) % length, *frames.shape[1:]), frames.dtype)
        return np.concatenate([frames, rest]).reshape(-1, length, *frames.shape[1:])

    def row(self) -> dict[str, Any]:
        names = {"engine": self.spec.engine, "mode": self.spec.mode, "precision": self.spec.precision}
        if self.spec.sequence > 1:
            names["sequence"] = self.spec.sequence
        if self.spec.threads is not None:
            names["threads"] = self.spec.threads
        facts = self.ask("facts")
        if self.error:
            return {**names, "error": self.error}
        if not self.turns:
            return {**names, "load_seconds": self._load_seconds, **facts}
        elapsed = [turn["elapsed_ns"] / 1e6 / self.spec.sequence for turn in self.turns]
        every = np.concatenate(elapsed)
        return {
            **names,
            "median_ms": float(np.median(every)),
            "p95_ms": float(np.percentile(every, 95)),
            "rounds_ms": [float(np.median(turn)) for turn in elapsed],
            "rounds_p95_ms": [float(np.percentile(turn, 95)) for turn in elapsed],
            "load_seconds": self._load_seconds,
            "idle_cpu_ms": float(np.mean([turn["idle_ns"] for turn in self.turns])) / 1e6,
            **facts,
        }

    def stop(self) -> None:
        self._channel.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._stderr.close()

    def _fail(self, message: str) -> None:
        self.error = message
        self.stop()

    def _obituary(self, request: str) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return f"hung up during '{request}' without ending"
        self._stderr.seek(0)
        tail = self._stderr.read().decode(errors="replace").strip().splitlines()[-3:]
        return f"the process ended with code {code} during '{request}'" + "".join(f"; {line}" for line in tail)
