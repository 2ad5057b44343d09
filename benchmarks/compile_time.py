"""How long models take to import and to compile.

An LSTM takes as long for sequences of 10 steps as of 1,000. Networks of many convolutions are divided into functions.
``python -m benchmarks.compile_time`` prints one line per length and per depth. Each runs in a process of its own, in
turns, so that none finds kernels that the other has made.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

#: Steps of a sequence, units of the layer, and processes per length.
LENGTHS, UNITS, ROUNDS = (10, 1000), 256, 3
#: Convolutions of a network, their channels, and pixels of its images; every other one is depthwise.
DEPTHS, CHANNELS, PIXELS = (8, 64), 64, 28


def measure(steps: int) -> dict[str, float]:
    """Return the seconds of the import and of the compilation of an LSTM in this process, every row in int8."""
    import torch

    return _measure(torch.nn.LSTM(UNITS, UNITS), torch.zeros(steps, 1, UNITS), "int8")


def measure_convolutions(depth: int) -> dict[str, float]:
    """Return the seconds of the import and of the compilation of a network of `depth` convolutions, in fp32."""
    from torch import nn, zeros

    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS if i % 2 else 1), nn.Hardswish()]
    return _measure(nn.Sequential(*layers), zeros(1, CHANNELS, PIXELS, PIXELS), "fp32")


def _measure(model, example, precision: str) -> dict[str, float]:
    from relay_passes.pipeline import prepare_pipeline
    from schedules.cpu import native_isa
    from tvm_dual.compiler import Compiler
    from tvm_dual.forms import exact_form
    from tvm_dual.frontend.dispatch import import_model
    from tvm_dual.sites import find_sites

    start = time.perf_counter()
    module = prepare_pipeline()(import_model(model, (example,)))
    imported = time.perf_counter()
    sites = find_sites(module)
    compiler = Compiler(module, sites, native_isa().name, 1)
    compiler.compile({site.name: compiler.form(precision, *exact_form(site, False)) for site in sites})
    return {"import_seconds": imported - start, "compile_seconds": time.perf_counter() - imported}


def compare() -> dict[str, dict[str, float]]:
    """Return the medians of both by what is measured, each of several fresh processes."""
    cases = [("steps", length) for length in LENGTHS] + [("convolutions", depth) for depth in DEPTHS]
    found: dict[str, list[dict[str, float]]] = {f"{count} {kind}": [] for kind, count in cases}
    for _ in range(ROUNDS):
        for (kind, count), results in zip(cases, found.values(), strict=True):
            command = [sys.executable, "-m", "benchmarks.compile_time", kind, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {part: statistics.median(result[part] for result in results) for part in results[0]}
        for name, results in found.items()
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure_one = {"steps": measure, "convolutions": measure_convolutions}[sys.argv[1]]
        print(json.dumps(measure_one(int(sys.argv[2]))))
    else:
        for name, seconds in compare().items():
            print(f"{name:>15}: {', '.join(f'{part} {value:.2f}' for part, value in seconds.items())}")
