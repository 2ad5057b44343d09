"""Kernels of floats, the same at all levels of one vector length (`test_levels.py`), which take long to compile."""

from __future__ import annotations

import pytest

from schedules import cpu


@pytest.fixture(
    scope="session", params=dict.fromkeys(level.vector_bytes for level in cpu.ISAS.values()), ids="{} bytes".format
)
def isa(request) -> cpu.Isa:
    """Return the highest level of each vector length that this machine runs."""
    levels = [level for level in cpu.ISAS.values() if level.vector_bytes == request.param]
    runnable = [level for level in levels if not cpu.missing_flags(level)]
    if not runnable:
        pytest.skip(f"{levels[-1].name}: this CPU lacks {', '.join(cpu.missing_flags(levels[-1]))}")
    return runnable[0]
