"""A fleet: candidates are compiled here and measured on the servers of TVM's RPC tracker."""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tvm
from tvm import rpc

from schedules.compiling import compiled
from schedules.families import Workload
from tvm_dual.errors import PlanError, SetupError
from tvm_dual.tuning.benches import Benches
from tvm_dual.tuning.candidates import Bench
from tvm_dual.tuning.isolated import IsolatedBench

#: In which a tracker must answer.
_ANSWER_SECONDS = 5


@dataclass(frozen=True)
class Tracker:
    """Where servers are asked for.

    Attributes
    ----------
    host : str
    port : int
    key : str
        That the servers were started with.
    """

    host: str
    port: int
    key: str

    @classmethod
    def parse(cls, address: str, key: str | None) -> Tracker:
        """Read ``HOST:PORT``.

        Raises
        ------
        PlanError
            If it is none, or there is no key.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise PlanError(f"rpc: found {address!r}; accepted: HOST:PORT of a tracker")
        if not key:
            raise PlanError(f"rpc: no key for the servers of {address}; accepted: the key that they were started with")
        return cls(host, int(port), key)

    def servers(self) -> int:
        """Return how many servers there are.

        Raises
        ------
        SetupError
            If there is no tracker, or it has none of this key.
        """
        summary = self.connect().summary()
        keys = [str(server["key"]).removeprefix("server:") for server in summary["server_info"]]
        if self.key not in keys:
            raise SetupError(
                f"tracker {self.host}:{self.port} has no server with the key {self.key!r}; it has "
                f"{', '.join(sorted(set(keys))) or 'none at all'}. Start one: "
                f"python -m tvm.exec.rpc_server --tracker {self.host}:{self.port} --key {self.key}"
            )
        return keys.count(self.key)

    def connect(self) -> rpc.TrackerSession:
        """Return a session with the tracker.

        Raises
        ------
        SetupError
            If there is none.
        """
        try:
            # TVM would try again for a minute.
            socket.create_connection((self.host, self.port), timeout=_ANSWER_SECONDS).close()
            return rpc.connect_tracker(self.host, self.port)
        except (OSError, RuntimeError) as error:
            raise SetupError(
                f"tracker {self.host}:{self.port} does not answer ({error}). Start one: "
                f"python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port {self.port}"
            ) from error

    def session(self) -> rpc.RPCSession:
        """Return a session with a server, once one is free.

        Raises
        ------
        SetupError
            If there is no tracker, or it has no such server.
        """
        self.servers()
        return self.connect().request(self.key)


def fleet(tracker: Tracker) -> Benches:
    """Return workers for all servers of a tracker's key."""
    address = (tracker.host, str(tracker.port), tracker.key)
    return Benches(partial(IsolatedBench, address=address), tracker.servers)


class RemoteBench(Bench):
    """A bench whose device is a server's CPU; made in a worker process."""

    def __init__(self, host: str, port: str, key: str) -> None:
        """Ask the tracker for a server, and wait for one that is free."""
        super().__init__()
        self._session = Tracker(host, int(port), key).session()
        self._device = self._session.cpu()

    def _generate(self, module: tvm.IRModule, workload: Workload) -> bytes:
        # A folder for each, gone at once: what ends this process may leave it no time to tidy up.
        with tempfile.TemporaryDirectory(prefix="tvm_dual-") as folder:
            path = Path(folder) / "candidate.so"
            compiled(module, workload.level, workload.threads).export_library(str(path))
            return path.read_bytes()

    def _loaded(self, code: bytes) -> tvm.runtime.Module:
        # Earlier ones are still in use on the server.
        name = f"candidate-{uuid.uuid4().hex}.so"
        self._session.upload(bytearray(code), name)
        return self._session.load_module(name)

    def _use_threads(self, count: int) -> None:
        self._session.get_function("runtime.config_threadpool")(1, count)

    def _checked(self, knobs) -> str:
        error = super()._checked(knobs)
        if error and not self._alive():
            # Whether the candidate took the server down, another try will show.
            os._exit(1)
        return error

    def _alive(self) -> bool:
        try:
            self._session.get_function("runtime.config_threadpool")
        except (RuntimeError, OSError):  # TVM's errors of a connection are of the first kind
            traceback.print_exc()
            return False
        return True
