"""A worker process, seen from the tuner: calls that raise `CandidateError` where a candidate takes it down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe

from tvm_dual.errors import TvmDualError
from tvm_dual.tuning.messages import Failed, Lost, Request

#: Seconds of processor time that one call may take; by the clock ten times as many.
PATIENCE = 60


class CandidateError(TvmDualError):
    """A candidate could not be compiled or run; it costs nothing but itself."""


class IsolatedBench:
    """A `tvm_dual.tuning.candidates.Bench`, or with an address a `RemoteBench`, in a process of its own."""

    def __init__(self, patience: int = PATIENCE, address: tuple[str, ...] = ()) -> None:
        """Start the process when it is first needed; give calls up after `patience` seconds of processor time.

        `address` is a tracker's host and port, and the key of its servers.
        """
        self._patience, self._address = patience, address
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> IsolatedBench:
        return self

    def __exit__(self, *failure) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            # Its children with it, whatever they are at.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._connection.close()
            self._process = None

    def call(self, method: str, *arguments):
        """Return what a method of the bench gives.

        Raises
        ------
        CandidateError
            If it raises, crashes, or takes too long.
        """
        if self._process is None:
            self._start()
        try:
            self._connection.send(Request(method, arguments, self._patience))
            answer = self._connection.recv()
        except (EOFError, OSError):
            # Not a child alone but the process that forks them is gone.
            self.close()
            raise CandidateError("the worker process ended") from None
        if isinstance(answer, Lost):
            raise CandidateError(self._reason(answer))
        if isinstance(answer, Failed):
            raise CandidateError(answer.error)
        return answer

    def _reason(self, lost: Lost) -> str:
        if lost.signal in (signal.SIGALRM, signal.SIGPROF):
            return f"not done after {self._patience} s"
        return f"crashed: {signal.Signals(lost.signal).name if lost.signal else 'ended by itself'}"

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", "tvm_dual.tuning.worker", str(theirs.fileno()), *self._address]
        # Not in the terminal's group: an interrupt is the tuner's to handle.
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        theirs.close()
