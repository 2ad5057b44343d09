"""The JSON file of a suite."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "torch", "onnx", "onnxruntime", "openvino", "apache-tvm")
_FEATURES = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip


def cpu_facts() -> dict[str, Any]:
    """The processor: model name, cores this process may use, and the vector features among those that matter here."""
    name, flags = platform.processor(), set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
    return {
        "name": name,
        "cores": len(os.sched_getaffinity(0)),
        "features": [feature for feature in _FEATURES if feature in flags],
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the engines that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: str | os.PathLike, suite: str, threads: int, rows: list[dict[str, Any]]) -> None:
    """Write a suite's result as one JSON object.

    Parameters
    ----------
    path : path-like
        The file; it appears whole or not at all.
    suite : str
        For example "nsnet2-48k".
    threads : int
        Threads that every engine had.
    rows : list of dict
        What `Harness.rows` returned, perhaps with more entries. Numbers must be finite.
    """
    document = {"suite": suite, "threads": threads, "cpu": cpu_facts(), "versions": versions(), "rows": rows}
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
