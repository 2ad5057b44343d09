"""What every engine of a suite of recurrent models can do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from tvm_dual.errors import TvmDualError


class EngineError(TvmDualError):
    """A peer cannot run this model, at this precision, on this machine."""


class Engine(ABC):
    """A model that computes one frame at a time, or a few, and carries its own recurrent state.

    Parameters
    ----------
    model_path : str
        An ONNX model that `benchmarks.peers.streaming.streaming_model` accepts.
    precision : str
        One of `precisions`.
    threads : int
        Threads the engine may compute with, at least 1.
    sequence : int
        Frames per call.

    Raises
    ------
    EngineError
        If the engine does not offer the precision, or the machine lacks what it needs.
    tvm_dual.errors.ModelError
        If the model cannot be streamed, or holds a layer the engine cannot express.
    """

    precisions: tuple[str, ...] = ()

    def __init__(self, model_path: str, precision: str, threads: int, sequence: int = 1):
        name = type(self).__name__
        if precision not in self.precisions:
            raise EngineError(f"{name} does not run {precision!r}; choose one of {', '.join(self.precisions)}")
        if threads < 1:
            raise EngineError(f"{name} was given {threads} threads; it needs at least 1")
        if sequence < 1:
            raise EngineError(f"{name} was given sequences of {sequence} frames; it needs at least 1")
        self.model_path, self.precision, self.threads, self.sequence = model_path, precision, threads, sequence
        #: Of what `step` takes and gives.
        self.shape = (-1,) if sequence == 1 else (sequence, -1)

    @abstractmethod
    def step(self, frame: np.ndarray) -> np.ndarray:
        """Compute one frame, or a sequence.

        Parameters
        ----------
        frame : numpy.ndarray
            float32, shape (features,), or (sequence, features) if that is more than one.

        Returns
        -------
        numpy.ndarray
            float32, shape (outputs,) or (sequence, outputs); the caller owns it.
        """

    @abstractmethod
    def reset(self) -> None:
        """Return to the state before the first frame."""

    def facts(self) -> dict:
        """Entries for the engine's row that only the engine knows, JSON-able."""
        return {}
