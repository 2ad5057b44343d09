"""Which instructions engines may use: all, or no matrix tiles, so that what AMX gives can be told apart."""

from __future__ import annotations

import os

#: What oneDNN, within PyTorch and OpenVINO, looks at; it is read when an engine starts. ONNX Runtime has no such
#: switch.
VARIABLE, WITHOUT_TILES = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI"


def switch_amx_off() -> None:
    """Keep engines that start from here on from matrix tiles: ours, PyTorch and OpenVINO."""
    os.environ[VARIABLE] = WITHOUT_TILES


def without_amx() -> bool:
    """Whether AMX is switched off."""
    return os.environ.get(VARIABLE) == WITHOUT_TILES


def our_target() -> str:
    """Return what our libraries are built for."""
    from schedules.cpu import native_isa

    native = native_isa()
    return "avx512_vnni" if without_amx() and native is not None and native.amx else "native"
