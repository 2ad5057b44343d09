"""Passes that change nothing: one reports progress, one writes the module to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvm
from tvm import IRModule


@tvm.transform.module_pass(opt_level=0, name="LogProgress")
class LogProgress:
    """Call `progress` with a phase's name when the pipeline reaches it."""

    def __init__(self, phase: str, progress: Callable[[str], None]) -> None:
        """Report `phase`."""
        self._phase, self._progress = phase, progress

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Report, and return `module` as it is."""
        self._progress(self._phase)
        return module


@tvm.transform.module_pass(opt_level=0, name="DumpModule")
class DumpModule:
    """Write the printable module to ``<folder>/<phase>.py``, weights left out."""

    def __init__(self, phase: str, folder: Path) -> None:
        """Write to `folder`, which is made if need be."""
        self._phase, self._folder = phase, Path(folder)

    def transform_module(self, module: IRModule, _context) -> IRModule:
        """Write, and return `module` as it is."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{self._phase}.py").write_text(module.script(show_meta=False))
        return module
