"""How long an LSTM takes to import and to compile, for sequences of 10 and of 1,000 steps: as long for both.

``python -m benchmarks.compile_time`` prints one line per length. Each runs in a process of its own, in turns, so that
none finds kernels that the other has made.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

#: Steps of a sequence, units of the layer, and processes per length.
LENGTHS, UNITS, ROUNDS = (10, 1000), 256, 3


def measure(steps: int) -> dict[str, float]:
    """Return the seconds of the import and of the compilation in this process, every row computed in int8."""
    import torch

    from relay_passes.pipeline import prepare_pipeline
    from schedules.cpu import native_isa
    from tvm_dual.compiler import Compiler
    from tvm_dual.forms import exact_form
    from tvm_dual.frontend.dispatch import import_model
    from tvm_dual.sites import find_sites

    model, example = torch.nn.LSTM(UNITS, UNITS), torch.zeros(steps, 1, UNITS)
    start = time.perf_counter()
    module = prepare_pipeline()(import_model(model, (example,)))
    imported = time.perf_counter()
    sites = find_sites(module)
    compiler = Compiler(module, sites, native_isa().name, 1)
    compiler.compile({site.name: compiler.form("int8", *exact_form(site, False)) for site in sites})
    return {"import_seconds": imported - start, "compile_seconds": time.perf_counter() - imported}


def compare() -> dict[int, dict[str, float]]:
    """Return the medians of `measure` by number of steps, each of several fresh processes."""
    found: dict[int, list[dict[str, float]]] = {steps: [] for steps in LENGTHS}
    for _ in range(ROUNDS):
        for steps, results in found.items():
            command = [sys.executable, "-m", "benchmarks.compile_time", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        steps: {part: statistics.median(result[part] for result in results) for part in results[0]}
        for steps, results in found.items()
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        for length, seconds in compare().items():
            print(f"{length:>5} steps: {', '.join(f'{part} {value:.2f}' for part, value in seconds.items())}")
