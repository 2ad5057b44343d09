"""Layers compiled by themselves, in each of their forms, and timed in turns on what they read in the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from schedules.cpu import ISAS
from tvm_dual.byte_little import as_bytes
from tvm_dual.compiler import Compiler
from tvm_dual.forms import EXACT_BYTES, GATED_BYTES, LITTLE_BYTES, little_alone
from tvm_dual.gates import EFFORTS, FAR, OPEN, thresholds
from tvm_dual.library import DualLibrary
from tvm_dual.model import Model
from tvm_dual.single_bounds import likely_bound
from tvm_dual.variants import Fits

#: Turns of every layer in every form, at most, and of bytes, which take less time to differ in; after `SECONDS`, as few
#: as `FEWEST`.
TURNS, BYTE_TURNS, FEWEST, SECONDS = 24, 120, 4, 10.0
#: Of the times of all turns the one that counts: other work on the machine only ever adds.
QUANTILE = 0.25
#: A library of one layer, and the thresholds to set before it is timed.
Entry = tuple[DualLibrary, dict[str, np.ndarray]]


def exact_entry(model: Model, name: str, form: tuple[str, str]) -> Entry:
    """Return the layer in an exact form."""
    forms = model.site_forms({name: form})
    return compiler_of(model, forms[name].precision).of_site(name).compile(forms), {}


def compiler_of(model: Model, precision: str) -> Compiler:
    """Return the compiler of a layer: on bytes it reads and writes what it does beside others on bytes."""
    if precision != "int8" or not model.on_bytes:
        return model.compiler
    return model.compiler.with_bytes(model.site_forms(dict.fromkeys(model.on_bytes, EXACT_BYTES)))


def bytes_entry(model: Model, name: str, size: int) -> Entry:
    """Return the layer behind its little module alone, on bytes."""
    forms, fit = model.site_forms({name: LITTLE_BYTES}), Fits(model.sized({name: size})).fit(name, LITTLE_BYTES)
    compiler = compiler_of(model, forms[name].precision).of_site(name)
    return compiler.compile(forms, {name: fit.little}, {name: fit.spread}), {}


def gated_bytes_entries(model: Model, name: str, size: int) -> list[Entry]:
    """Return the layer on bytes with every tile closed, and with all of them open."""
    return _at_ends(model, compiler_of(model, "int8").of_site(name), name, GATED_BYTES, size)


def gated_entries(model: Model, name: str, form: tuple[str, str], size: int) -> list[Entry]:
    """Return the layer with every tile or row closed, with all of them open, and behind the little module alone."""
    fit, compiler = Fits(model.sized({name: size})).fit(name, form), model.compiler.of_site(name)
    alone = compiler.compile(model.site_forms({name: little_alone(form)}), {name: fit.little}, {name: fit.spread})
    return [*_at_ends(model, compiler, name, form, size), (alone, {})]


def _at_ends(model: Model, compiler: Compiler, name: str, form: tuple[str, str], size: int) -> list[Entry]:
    """Return the layer with every tile or row closed, and with all of them open."""
    fit, site, at = Fits(model.sized({name: size})).fit(name, form), model.sites[name], EFFORTS.index(1.0)
    library = compiler.compile(model.site_forms({name: form}, "damage"), {name: fit.little}, {name: fit.spread})
    tables = (thresholds(site, "damage", limit, fit.spread, fit.weights)[at : at + 1] for limit in (FAR, OPEN))
    return [(library, {name: table}) for table in tables]


def singles_entries(model: Model, name: str, form: tuple[str, str], size: int) -> tuple[list[Entry], float]:
    """Return the layer with every output closed, some, and all of them open; and what share some are."""
    fit, site = Fits(model.sized({name: size})).fit(name, form), model.sites[name]
    bound, density = likely_bound(site, fit, model.observations[name], ISAS[model.compiler.isa])
    library = model.compiler.of_site(name).compile(
        model.site_forms({name: form}, "damage"), {name: fit.little}, {name: fit.spread}
    )
    at, limits = EFFORTS.index(1.0), (FAR, bound, OPEN)
    found = (thresholds(site, "damage", limit, fit.spread, fit.weights, gate="singles") for limit in limits)
    tables = (table[at : at + 1] for table in found)
    return [(library, {name: table}) for table in tables], density


def in_turns(
    model: Model, entries: Mapping[str, list[Entry]], others: Mapping[str, Entry] | None = None, turns: int = TURNS
) -> dict[str, list[float]]:
    """Return the microseconds of each layer's entries; layers without an entry for a turn run that of `others`."""
    if not any(entries.values()):
        return {name: [] for name in entries}
    timed = {name: len(entries.get(name, ())) for name in model.sites}
    queues = {
        name: [*entries.get(name, ()), *([others[name]] if others else [])]
        for name in model.sites
        if timed[name] or others
    }
    given = {name: [_given(model, name, library) for library, _ in queue] for name, queue in queues.items()}
    runs = {name: [library.stream() for library, _ in queue] for name, queue in queues.items()}
    times = {name: [[] for _ in found] for name, found in entries.items()}
    start = time.monotonic()
    for turn in range(turns):
        for position in range(max(timed.values())):
            for name, queue in queues.items():
                at = min(position, len(queue) - 1)
                (library, tables), run, calls = queue[at], runs[name][at], given[name][at]
                library.set_thresholds(tables)
                call = calls[turn % len(calls)]
                begin = time.perf_counter_ns()
                run(*call)
                if position < timed[name]:
                    times[name][position].append((time.perf_counter_ns() - begin) / 1e3)
        if turn + 1 >= FEWEST and time.monotonic() - start > SECONDS:
            break
    return {name: [float(np.quantile(t, QUANTILE)) for t in found] for name, found in times.items()}


def _given(model: Model, name: str, library: DualLibrary) -> list[tuple[np.ndarray, ...]]:
    """Return calls of a layer with bytes in place of the images that it reads as such."""
    kinds, examples = [tensor.dtype for tensor in library.metadata.inputs], model.observations[name].examples
    levels = model.read_levels(name) if "uint8" in kinds else None
    return [
        tuple(as_bytes(x, levels) if kind == "uint8" else x for kind, x in zip(kinds, call, strict=True))
        for call in examples
    ]


def copies_alone(model: Model, names: list[str]) -> Callable[[str], Entry]:
    """Return what compiles one of several layers on bytes, all of which hand each other bytes."""
    levels = {name: model.copy_levels(name) for name in names}
    forms = {
        name: replace(model.compiler.form("int8", *EXACT_BYTES), scale=at.scale, zero=at.zero)
        for name, at in levels.items()
    }
    compiler = model.compiler.with_bytes(forms)
    return lambda name: (compiler.of_site(name).compile({name: forms[name]}), {})
