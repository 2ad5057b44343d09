"""How long a library takes to load, and how much memory it needs, where only numpy and TVM are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

#: Run in a process of its own. Packages that a deployment machine lacks cannot be imported here either.
_SCRIPT = """
import sys, time, json
for name in ("torch", "xgboost", "onnx", "scipy"):
    sys.modules[name] = None
import numpy as np
start = time.perf_counter()
import tvm_dual
library = tvm_dual.load(sys.argv[1])
run = library.stream()
run(*(np.zeros(t.shape, "float32") for t in library.metadata.inputs))
seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"load_seconds": seconds, "resident_mb": peak / 1e3}))
"""


def measure_loading(path: Path, repeats: int = 3) -> dict[str, float]:
    """Return the median seconds to load and run the first frame, and the peak resident memory in MB.

    Python's start and numpy's import are not counted; importing TVM's runtime is.
    """
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", _SCRIPT, str(path)]
    found = []
    for _ in range(repeats):
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(result.stdout))
    found.sort(key=lambda values: values["load_seconds"])
    return found[len(found) // 2]
