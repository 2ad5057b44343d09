"""A tracker and two servers on this machine, one of which dies while candidates are measured."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from schedules.cpu import native_isa
from schedules.families import Workload
from tvm_dual.errors import SetupError
from tvm_dual.tuning import records
from tvm_dual.tuning.api import check_tuning, tune_kernels
from tvm_dual.tuning.fleet import Tracker
from tvm_dual.tuning.manifest import read_manifest
from tvm_dual.tuning.problem import Usage
from tvm_dual.tuning.watcher import Silent

KEY = "loopback"
START_SECONDS = 120

pytest.importorskip("tornado", reason="TVM's tracker needs tornado")


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **quiet)


def end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(tracker: Tracker, servers: int) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        try:
            if tracker.servers() == servers:
                return
        except SetupError:
            pass
        time.sleep(0.5)
    pytest.fail(f"no {servers} servers after {START_SECONDS} s")


@pytest.fixture
def fleet():
    """Return a tracker and its two servers' processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limits = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    processes = [start("tvm.exec.rpc_tracker", *limits)]
    try:
        address = ["--host", "127.0.0.1", "--tracker", f"127.0.0.1:{port}", "--key", KEY]
        for i in (1, 2):
            ports = ["--port", str(port + 10 * i), "--port-end", str(port + 10 * i + 9)]
            processes.append(start("tvm.exec.rpc_server", *address, *ports))
        tracker = Tracker("127.0.0.1", port, KEY)
        wait_for(tracker, 2)
        yield tracker, processes[1:]
    finally:
        for process in processes:
            end(process)


class Killer(Silent):
    """Ends a server after the first batch."""

    def __init__(self, server: subprocess.Popen) -> None:
        self._server = server

    def measured(self, workload, batch, best) -> None:
        end(self._server)


def test_a_fleet_tunes_on_though_a_server_dies(fleet, tmp_path):
    tracker, servers = fleet
    runner = f"{tracker.host}:{tracker.port}"
    with pytest.raises(SetupError, match="has no server with the key 'other'; it has loopback"):
        check_tuning("native", 1, 1, runner, "other")
    isa = native_isa().name
    kernels = {Workload("rows_fp32", (24, 40, 1), isa, 1): Usage(), Workload("little", (40, 9, 8), isa, 1): Usage()}
    folder = tune_kernels(kernels, isa, trials=6, logs=tmp_path, runner=runner, key=KEY, watcher=Killer(servers[0]))
    found = records.read(folder)
    assert [record.error for record in found] == [""] * len(found)
    assert sum(not record.verdict for record in found) == 12
    assert {record.workload for record in found if record.verdict} == set(kernels)
    assert servers[1].poll() is None
    assert read_manifest(folder).isa == isa
