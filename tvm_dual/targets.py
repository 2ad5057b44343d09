"""Instruction set levels that a build is asked for."""

from __future__ import annotations

from schedules.cpu import ISAS, available_cores, cpu_name, native_isa
from tvm_dual.errors import PlanError, SetupError


def checked_target(target: str, threads: int) -> str:
    """Return the name of an instruction set level, for ``native`` or a level that runs here.

    Raises
    ------
    PlanError
        If the level is not known or does not run on this CPU, or there are not that many cores.
    SetupError
        If no level runs on this CPU.
    """
    if not isinstance(threads, int) or not 1 <= threads <= available_cores():
        raise PlanError(f"threads: found {threads!r}; accepted: 1 to {available_cores()}, the cores of this process")
    native = native_isa()
    if native is None:
        raise SetupError(f"this CPU ({cpu_name()}) has no AVX2; building needs to measure, so build on one that has it")
    names = list(ISAS)
    if target == "native":
        return native.name
    if target not in names:
        raise PlanError(f"target {target!r} is not known; accepted: native, {', '.join(names)}")
    if names.index(target) < names.index(native.name):
        raise PlanError(
            f"target {target!r} does not run on this CPU ({cpu_name()}), and building measures on it; "
            f"accepted here: native, {', '.join(names[names.index(native.name) :])}"
        )
    return target
