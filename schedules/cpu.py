"""What the CPU can do, and the TVM target that says so.

``Target.from_device("cpu")`` misnames some CPUs, so the choice rests on the flags that the
operating system reports.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Isa:
    """An instruction set level that kernels are generated for.

    Attributes
    ----------
    name : str
        Level name, also what ``build(target=...)`` accepts.
    mcpu : str
        LLVM's name of the oldest CPU of this level.
    requires : tuple of str
        CPU flags, in the spelling of ``/proc/cpuinfo``, that a library of this level needs.
    vector_bytes : int
        Width of a vector register in bytes.
    vnni : bool
        Whether 8-bit dot products with 32-bit sums (``vpdpbusd``) exist.
    """

    name: str
    mcpu: str
    requires: tuple[str, ...]
    vector_bytes: int
    vnni: bool

    @property
    def lanes(self) -> int:
        """Number of 32-bit lanes of a vector register."""
        return self.vector_bytes // 4

    @property
    def activation_levels(self) -> int:
        """Largest quantized activation.

        Without VNNI the 8-bit product goes through ``pmaddubsw``, whose 16-bit pair sums saturate
        for 255 x 127 x 2; seven bits are exact.
        """
        return 255 if self.vnni else 127

    @property
    def row_bytes(self) -> int:
        """Granularity in bytes to which rows of packed matrices are padded: a cache line."""
        return 64


_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")

#: Best first. AMX machines run the AVX-512 VNNI kernels of this table: matrix tiles do not help
#: matrix-vector products, which are bound by the bytes of weights read.
ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512_vnni", "cascadelake", ("avx2", "fma", *_AVX512, "avx512_vnni"), 64, True),
        Isa("avx512", "skylake-avx512", ("avx2", "fma", *_AVX512), 64, False),
        Isa("avx2", "haswell", ("avx2", "fma"), 32, False),
    )
}


def cpu_flags() -> frozenset[str]:
    """Return the CPU's feature flags as the operating system spells them (empty if unknown)."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def cpu_name() -> str:
    """Return the CPU's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def missing_flags(isa: Isa, flags: frozenset[str] | None = None) -> list[str]:
    """Return what `isa` needs and this CPU lacks, in a fixed order."""
    have = cpu_flags() if flags is None else flags
    return [flag for flag in isa.requires if flag not in have]


def native_isa(flags: frozenset[str] | None = None) -> Isa | None:
    """Return the best level this CPU runs, or None if it lacks even AVX2."""
    return next((isa for isa in ISAS.values() if not missing_flags(isa, flags)), None)


def tvm_target(isa: Isa, threads: int):
    """Return the TVM target of a level. ``num-cores`` is what tuning insists on."""
    import tvm

    # LLVM vectorises loops for these CPUs with half-width registers unless told otherwise.
    wide = ["-prefer-256-bit"] if isa.vector_bytes == 64 else []
    return tvm.target.Target({"kind": "llvm", "mcpu": isa.mcpu, "mattr": wide, "num-cores": threads})


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Let kernels that this thread calls run on `count` threads, or on all cores if there are fewer."""
    # Read when the pool starts: binding would put two processes on the same cores.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    import tvm

    # The first call sizes the pool for good, by the list; by itself TVM takes half of the cores.
    cores = [str(core) for core in range(available_cores())]
    tvm.get_global_func("runtime.config_threadpool")(1, count, cores)


def aligned_empty(shape: tuple[int, ...], dtype: str, alignment: int = 64) -> np.ndarray:
    """Return an uninitialised array whose data starts at a multiple of `alignment` bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + alignment, "uint8")
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)
