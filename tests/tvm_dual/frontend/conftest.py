"""What tests of importers share: random arrays, and an imported model compiled."""

from __future__ import annotations

import numpy as np

from relay_passes.pipeline import prepare_pipeline
from schedules.cpu import native_isa
from tvm_dual.compiler import Compiler
from tvm_dual.forms import exact_form
from tvm_dual.sites import find_sites


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Return small random numbers, float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.4).astype("float32")


def compiled_module(module, precision: str = "fp32"):
    """Return a library of the exact forms of an imported module, and its sites."""
    module = prepare_pipeline()(module)
    sites = find_sites(module)
    compiler = Compiler(module, sites, native_isa().name, 1)
    forms = {s.name: compiler.form(precision, *exact_form(s, s.nonnegative)) for s in sites if s.can_rewrite}
    return compiler.compile(forms), sites


def stream(library, sequence) -> np.ndarray:
    """Return the first output of every step of a sequence, ``(steps, outputs)``."""
    run = library.stream()
    results = [run(np.asarray(step)) for step in sequence]
    return np.stack([(r[0] if isinstance(r, tuple) else r).reshape(-1) for r in results])
