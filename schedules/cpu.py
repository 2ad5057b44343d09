"""What the CPU can do, and the TVM target that says so.

``Target.from_device("cpu")`` misnames some CPUs, so the choice rests on the flags that the
operating system reports.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
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
    amx : bool
        Whether matrix tiles exist, of bytes and of bf16, and the instructions that round to bf16.
    features : tuple of str
        What LLVM may use beyond `mcpu`.
    tuned_as : str
        Level whose tuning records count, if not this one's own: its kernels with knobs are the same.
    """

    name: str
    mcpu: str
    requires: tuple[str, ...]
    vector_bytes: int
    vnni: bool
    amx: bool = False
    features: tuple[str, ...] = ()
    tuned_as: str = ""

    @property
    def records(self) -> str:
        """Name of the level that this one's kernels are tuned for."""
        return self.tuned_as or self.name

    @property
    def lanes(self) -> int:
        """Number of 32-bit lanes of a vector register."""
        return self.vector_bytes // 4

    @property
    def registers(self) -> int:
        """Number of vector registers."""
        return 32 if self.vector_bytes == 64 else 16

    @property
    def activation_levels(self) -> int:
        """Largest quantized activation.

        Without VNNI the 8-bit product goes through ``pmaddubsw``, whose 16-bit pair sums saturate
        for 255 x 127 x 2; seven bits are exact.
        """
        return 255 if self.vnni else 127

    @property
    def first_level(self) -> int:
        """Bytes of the first-level cache for data of a core, of most CPUs of this level."""
        return (48 if self.vector_bytes == 64 else 32) << 10

    @property
    def second_level(self) -> int:
        """Bytes of a core's second level of cache that kernels count on."""
        return 2 << 20 if self.vector_bytes == 64 else 512 << 10

    @property
    def row_bytes(self) -> int:
        """Granularity in bytes to which rows of packed matrices are padded: a cache line."""
        return 64


_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
_VNNI = ("avx2", "fma", *_AVX512, "avx512_vnni")
_TILES = ("amx_tile", "amx_int8", "amx_bf16", "avx512_bf16")

#: Best first. AMX machines run the AVX-512 VNNI kernels of this table for all but convolutions of bytes: matrix tiles
#: do not help matrix-vector products, which are bound by the bytes of weights read.
ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            *("amx", "cascadelake", (*_VNNI, *_TILES), 64, True, True),
            features=("+amx-tile", "+amx-int8", "+amx-bf16", "+avx512bf16"),
            tuned_as="avx512_vnni",
        ),
        Isa("avx512_vnni", "cascadelake", _VNNI, 64, True),
        Isa("avx512", "skylake-avx512", ("avx2", "fma", *_AVX512), 64, False),
        Isa("avx2", "haswell", ("avx2", "fma"), 32, False),
    )
}
#: What `missing_flags` names where the CPU has tiles, and Linux gives them to no process.
NO_TILES = "permission to use AMX tiles"
#: Of Linux on x86-64: the system call ``arch_prctl``, its request of a register state, and that of tiles' data.
_ARCH_PRCTL, _REQUEST_STATE, _TILE_DATA = 158, 0x1023, 18


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
    """Return what `isa` needs and this CPU lacks, in a fixed order; `flags` are another CPU's.

    Where a level with tiles runs, this process may use them from here on.
    """
    have = cpu_flags() if flags is None else flags
    missing = [flag for flag in isa.requires if flag not in have]
    if isa.amx and flags is None and not missing and not request_tiles():
        return [NO_TILES]
    return missing


@lru_cache(maxsize=1)
def request_tiles() -> bool:
    """Ask Linux for AMX tiles, which a process must do once before it uses them; say if it gave them."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_STATE, _TILE_DATA) == 0


def native_isa(flags: frozenset[str] | None = None) -> Isa | None:
    """Return the best level this CPU runs, or None if it lacks even AVX2."""
    return next((isa for isa in ISAS.values() if not missing_flags(isa, flags)), None)


def tvm_target(isa: Isa, threads: int):
    """Return the TVM target of a level. ``num-cores`` is what tuning insists on."""
    import tvm

    # LLVM vectorises loops for these CPUs with half-width registers unless told otherwise.
    wide = ["-prefer-256-bit"] if isa.vector_bytes == 64 else []
    features = [*wide, *isa.features]
    return tvm.target.Target({"kind": "llvm", "mcpu": isa.mcpu, "mattr": features, "num-cores": threads})


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
