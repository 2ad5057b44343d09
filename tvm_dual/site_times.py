"""What each form of a layer takes: layers compiled one by one, and timed in turns on what they read in the model.

A whole model is timed in milliseconds, of which one layer is a small part that other work on the machine hides; a
layer alone takes microseconds. Layers take turns in the order of the model, so that each finds the caches as it would
there: full of the layer before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tvm_dual.gates import FAR, OPEN, thresholds
from tvm_dual.library import DualLibrary
from tvm_dual.variants import Fits, Forms, Model, exact_form, gated_form

#: Turns of every layer in every form, at most; after `SECONDS`, as few as `FEWEST`.
TURNS, FEWEST, SECONDS = 24, 4, 10.0
#: Of the times of all turns the one that counts: other work on the machine only ever adds.
QUANTILE = 0.25


@dataclass(frozen=True)
class SiteTimes:
    """Microseconds of one layer.

    Attributes
    ----------
    form : tuple of str
        The fastest exact form.
    exact : float
        In that form.
    closed, opened : dict of float
        Gated, with no tile or row open, and with all of them, by directions of the little module.
    """

    form: tuple[str, str]
    exact: float
    closed: dict[int, float]
    opened: dict[int, float]


#: A library of one layer, and the thresholds to set before it is timed.
_Entry = tuple[DualLibrary, dict[str, np.ndarray]]


def time_sites(
    model: Model, sizes: Mapping[str, tuple[int, ...]], progress: Callable[[str, int, int], None]
) -> dict[str, SiteTimes]:
    """Time all layers of a model that has no states.

    Parameters
    ----------
    model : Model
    sizes : mapping of tuple of int
        By layer that may be gated: directions of the little modules to time. All others are timed in their exact
        forms.
    progress : callable
        Called with ``(phase, done, total)``.
    """
    total, done = len(model.sites) + sum(map(len, sizes.values())), 0

    def compiled(name: str, form: tuple[str, str], size: int | None = None) -> list[_Entry]:
        nonlocal done
        progress("layers alone", done, total)
        done += 1
        site, littles, spreads, limits = model.sites[name], {}, {}, [None]
        if size is not None:
            fit = Fits(model.sized({name: size})).fit(name, form)
            littles, spreads, limits = {name: fit.little}, {name: fit.spread}, [FAR, OPEN]
        forms = model.site_forms({name: form}, "damage")
        library = model.compiler.of_site(name).compile(forms, littles, spreads)
        tables = [
            {} if limit is None else {name: thresholds(site, "damage", limit, fit.spread, fit.weights)[3:4]}
            for limit in limits
        ]
        return [(library, table) for table in tables]

    skips = {name: (False, True) if site.nonnegative else (False,) for name, site in model.sites.items()}
    exact = {
        name: [entry for skip in skips[name] for entry in compiled(name, exact_form(site, skip))]
        for name, site in model.sites.items()
    }
    times = _in_turns(model, exact)
    forms: Forms = {
        name: exact_form(model.sites[name], skips[name][int(np.argmin(found))]) for name, found in times.items()
    }
    gated = {
        name: [entry for k in sizes[name] for entry in compiled(name, gated_form(model.sites[name], forms[name]), k)]
        for name in sizes
        if "rows" in gated_form(model.sites[name], forms[name])
    }
    found = _in_turns(model, gated)
    progress("layers alone", total, total)
    return {
        name: SiteTimes(
            forms[name],
            min(times[name]),
            dict(zip(sizes.get(name, ()), found.get(name, [])[::2], strict=False)),
            dict(zip(sizes.get(name, ()), found.get(name, [])[1::2], strict=False)),
        )
        for name in model.sites
    }


def _in_turns(model: Model, entries: Mapping[str, list[_Entry]]) -> dict[str, list[float]]:
    """Return the microseconds of each layer's entries."""
    runs = {name: [library.stream() for library, _ in found] for name, found in entries.items()}
    times = {name: [[] for _ in found] for name, found in entries.items()}
    start = time.monotonic()
    for turn in range(TURNS):
        for position in range(max(map(len, runs.values()), default=0)):
            for name, found in entries.items():
                if position >= len(found):
                    continue
                (library, tables), run = found[position], runs[name][position]
                library.set_thresholds(tables)
                examples = model.observations[name].examples
                call = examples[turn % len(examples)]
                begin = time.perf_counter_ns()
                run(*call)
                times[name][position].append((time.perf_counter_ns() - begin) / 1e3)
        if turn + 1 >= FEWEST and time.monotonic() - start > SECONDS:
            break
    return {name: [float(np.quantile(t, QUANTILE)) for t in found] for name, found in times.items()}
