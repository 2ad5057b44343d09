"""``tvm-dual bench``: run a suite, print its table, write its JSON."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from benchmarks.results import write_json
from benchmarks.tables import print_rows, summary
from tvm_dual.console import progress_bars
from tvm_dual.errors import DataError


def bench(suite: str, path: Path, threads: int, short: bool) -> None:
    """Run one suite.

    Raises
    ------
    DataError
        If `path` cannot be written; checked before the long run.
    """
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
        raise DataError(f"--json '{path}': cannot be written; accepted: a file in a folder that exists and is writable")
    module = importlib.import_module(f"benchmarks.{suite}")
    with progress_bars() as progress:
        result = module.run(threads, module.SHORT if short else module.FULL, progress)
    write_json(path, module.NAME, threads, result.rows)
    print(result.library.report)
    print_rows(result.rows)
    for line in summary(result.rows):
        print(line)
    print(f"wrote {path}")
