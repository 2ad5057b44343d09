"""tvm_dual: neural networks on x86 CPUs, computing only what matters for each input.

Names are loaded when they are first used, so that `load` works where only numpy and TVM are installed.
"""

from __future__ import annotations

import importlib

from tvm_dual.errors import (
    BudgetError,
    DataError,
    EvaluationError,
    LibraryError,
    ModelError,
    PlanError,
    SetupError,
    TvmDualError,
)
from tvm_dual.versions import VERSION

__version__ = VERSION

_HOMES = {
    "AdvancedOptions": "tvm_dual.options",
    "DualLibrary": "tvm_dual.library",
    "Plan": "tvm_dual.plan",
    "build": "tvm_dual.builder",
    "finetune": "tvm_dual.builder",
    "load": "tvm_dual.library",
    "tune": "tvm_dual.tuning.api",
}

__all__ = [
    "AdvancedOptions",
    "BudgetError",
    "DataError",
    "DualLibrary",
    "EvaluationError",
    "LibraryError",
    "ModelError",
    "Plan",
    "PlanError",
    "SetupError",
    "TvmDualError",
    "__version__",
    "build",
    "finetune",
    "load",
    "tune",
]


def __getattr__(name: str):
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tvm_dual' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
