"""Kernels by builder and parameters, each parsed once: TVMScript takes tens of milliseconds a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from schedules.macros import quick_macros


@lru_cache(maxsize=1024)
def kernel(builder: Callable, *parameters):
    """Return ``builder(*parameters)``, a PrimFunc, from the cache if it was built before.

    PrimFuncs are immutable, so sharing one between modules is safe.
    """
    with quick_macros():
        return builder(*parameters)
