"""Kernels by builder and parameters, each parsed once: TVMScript takes tens of milliseconds a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1024)
def kernel(builder: Callable, *parameters):
    """Return ``builder(*parameters)``, a PrimFunc, from the cache if it was built before.

    PrimFuncs are immutable, so sharing one between modules is safe.
    """
    return builder(*parameters)
