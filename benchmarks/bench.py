"""``tvm-dual bench``: run a suite, print its table, write its JSON."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.levels import switch_amx_off
from benchmarks.results import write_json
from tvm_dual.console import progress_bars
from tvm_dual.container import refuse_unwritable
from tvm_dual.errors import PlanError


def bench(
    suite: str, path: Path, threads: int, short: bool, files: dict[str, Path] | None = None, amx: bool = True
) -> None:
    """Run one suite.

    Parameters
    ----------
    suite : str
    path : Path
        Receives the rows.
    threads : int
    short : bool
        Less of everything.
    files : dict of Path, optional
        What the suite reads, by its names for it (``FILES`` of its module).
    amx : bool
        Whether engines may use matrix tiles: suites of convolutions; ONNX Runtime does as it likes.

    Raises
    ------
    DataError
        If `path` cannot be written; checked before the long run.
    PlanError
        If the suite does not take one of the files.
    """
    refuse_unwritable(path, "--json")
    if not amx:
        switch_amx_off()
    module = importlib.import_module(f"benchmarks.{suite.replace('-', '_')}")
    for name in files or {}:
        if name not in module.FILES:
            taken = ", ".join(f"--{file}" for file in module.FILES) or "no files"
            raise PlanError(f"--{name}: suite '{suite}' does not take it; accepted: {taken}")
    with progress_bars() as progress:
        result = module.run(threads, module.SHORT if short else module.FULL, progress, **(files or {}))
    write_json(path, module.NAME, threads, result.rows)
    module.show(result, path)
    print(f"wrote {path}")
