"""The process that candidates run in: it forks once after its imports, and again for each child that is lost.

A candidate may crash, or never end. Then its child alone is gone, and the next one is there in milliseconds,
where a new process would import TVM for seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

from tvm_dual.tuning.messages import Failed, Lost

#: Seconds by the clock that a call may take for each second of processor time.
_WAITING = 10


def main() -> None:
    """Serve requests from the connection whose file descriptor is the first argument, until it closes.

    Further arguments are those of a `RemoteBench`.
    """
    connection, address = Connection(int(sys.argv[1])), sys.argv[2:]
    # Imported before the fork, so that children have them.
    from tvm_dual.tuning.candidates import Bench

    if address:
        from tvm_dual.tuning.fleet import RemoteBench as Bench
    while True:
        child = os.fork()
        if child == 0:
            _serve(connection, partial(Bench, *address))
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        connection.send(Lost(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0))


def _serve(connection: Connection, make_bench: Callable) -> None:
    """Answer requests; never returns."""
    bench = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            os._exit(0)
        # Unhandled, an alarm ends the process, whatever native code it is in. On a busy machine a call takes long
        # by the clock without anything being wrong with it.
        signal.setitimer(signal.ITIMER_PROF, request.seconds)
        signal.alarm(_WAITING * request.seconds)
        try:
            bench = bench or make_bench()
            answer = getattr(bench, request.method)(*request.arguments)
        except Exception:
            answer = Failed(traceback.format_exc())
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        connection.send(answer)


if __name__ == "__main__":
    main()
