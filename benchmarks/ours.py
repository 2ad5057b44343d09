"""Our own libraries as an engine of the harness."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

import tvm_dual
from benchmarks.harness import EngineSpec
from benchmarks.peers.base import Engine
from tvm_dual.library import DualLibrary


class DualEngine(Engine):
    """An exported library, streamed frame by frame, or sequence by sequence.

    Parameters
    ----------
    model_path, precision, threads, sequence
        See `Engine`; `model_path` is the library's.
    thresholds : str, optional
        A .npz file of thresholds by site, instead of the library's own.
    """

    precisions = ("fp32", "bf16", "int8")

    def __init__(
        self, model_path: str, precision: str, threads: int, sequence: int = 1, thresholds: str | None = None
    ) -> None:
        """Load the library."""
        super().__init__(model_path, precision, threads, sequence)
        self._library = tvm_dual.load(model_path)
        if thresholds is not None:
            with np.load(thresholds) as tables:
                self._library.set_thresholds(dict(tables))
        self._stream = self._library.stream()

    def step(self, frame: np.ndarray) -> np.ndarray:
        """Compute one frame; see `Engine.step`."""
        return self._stream(frame).reshape(self.shape)

    def reset(self) -> None:
        """Return to the zero state."""
        self._stream.reset()

    def facts(self) -> dict:
        """Return density, bytes of weights and multiply-adds: per frame, on the calibration data, and in all."""
        report = self._library.report
        return {
            "density": report.density,
            "weight_bytes_read": round(report.bytes_read),
            "weight_bytes": sum(site["weight_bytes"] for site in report.rows()),
            "operations": round(report.operations),
            "dense_operations": round(report.all_operations),
        }


def our_spec(
    library: DualLibrary, path: Path, mode: str, sequence: int = 1, own_threads: int | None = None
) -> EngineSpec:
    """Export a library to `path` and return it as an engine of the harness.

    Parameters
    ----------
    library : DualLibrary
        As `tvm_dual.build` returns it.
    path : Path
    mode : str
        What the row calls it.
    sequence : int
        Calls that the library takes at once.
    own_threads : int, optional
        The library's, if they are not those of the harness.
    """
    precision, threads = library.report.plan.precision, library.metadata.threads
    arguments = {"model_path": str(library.export_library(path)), "precision": precision, "threads": threads}
    arguments["sequence"] = sequence
    return EngineSpec("tvm_dual", mode, precision, f"{__name__}:deployed", arguments, sequence, own_threads)


def deployed(**arguments) -> DualEngine:
    """Return the engine, in a process as on a machine that only runs libraries: with TVM's runtime and without torch.

    Torch, which tvm-ffi imports where it is installed, would take 200 MB in each of a suite's processes.
    """
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    sys.modules["torch"] = None
    return DualEngine(**arguments)
