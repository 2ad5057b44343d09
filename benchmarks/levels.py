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
    return "avx512_vnni" if without_amx() and _has_tiles() else "native"


def our_bf16() -> bool:
    """Whether our libraries may compute in bf16."""
    return _has_tiles() and not without_amx()


def _has_tiles() -> bool:
    from schedules.cpu import native_isa

    native = native_isa()
    return native is not None and native.amx
