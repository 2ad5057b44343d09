"""What each form of a layer takes: layers compiled one by one, and timed in turns on what they read in the model.

A whole model is timed in milliseconds, of which one layer is a small part that other work on the machine hides; a
layer alone takes microseconds. Layers take turns in the order of the model, so that each finds the caches as it would
there: full of the layer before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from relay_passes.site_plan import COARSE, COPIES
from tvm_dual.cost import all_operations, little_operations
from tvm_dual.forms import (
    EXACT_BYTES,
    GATED_BYTES,
    LITTLE_BYTES,
    Forms,
    exact_form,
    gated_forms,
    singles_form,
)
from tvm_dual.model import Model
from tvm_dual.site_costs import SingleCosts, SiteCosts
from tvm_dual.site_entries import (
    BYTE_TURNS,
    Entry,
    bytes_entry,
    copies_alone,
    exact_entry,
    gated_bytes_entries,
    gated_entries,
    in_turns,
    singles_entries,
)

#: Directions of coarse little modules, as multiples of those of projections, which are for a pixel and not for four.
COARSE_TIMES = 2


def time_sites(
    model: Model,
    sizes: Mapping[str, tuple[int, ...]],
    progress: Callable[[str, int, int], None],
    *,
    back_to_floats: bool = True,
) -> dict[str, SiteCosts]:
    """Time all layers of a model that has no states, in microseconds.

    Parameters
    ----------
    model : Model
    sizes : mapping of tuple of int
        By layer that may be gated, or behind its little module on bytes: directions of the little modules to time. All
        others are timed in their exact forms.
    progress : callable
        Called with ``(phase, done, total)``.
    back_to_floats : bool
        Whether a layer on bytes or bf16 may be one of floats where skipping zeros is faster.
    """
    forms_of_gates = len(model.options.gates)
    told = _Told(progress, len(model.sites) + forms_of_gates * sum(map(len, sizes.values())))
    may_skip = {n for n, site in model.sites.items() if site.nonnegative and (back_to_floats or not model.is_low(n))}
    skips = {name: (False, True) if name in may_skip else (False,) for name in model.sites}
    exact = {
        name: [told(exact_entry, model, name, exact_form(site, skip)) for skip in skips[name]]
        for name, site in model.sites.items()
    }
    times = in_turns(model, exact)
    best = {name: int(np.argmin(found)) for name, found in times.items()}
    forms = {name: exact_form(model.sites[name], skips[name][at]) for name, at in best.items()}
    others = {name: exact[name][at] for name, at in best.items()}
    may_gate = {name: found for name, found in sizes.items() if model.gates(name) and name not in model.on_bytes}
    # Where floats were faster no little module on bytes is looked for.
    on_bytes = {n: found for n, found in sizes.items() if model.littles_on_bytes(n) and forms[n] == EXACT_BYTES}
    result = {name: SiteCosts(form, min(times[name]), form, {}, {}, {}) for name, form in forms.items()}
    result |= _time_on_bytes(model, on_bytes, others, told)
    kinds = _time_copies(model, may_gate, result, others, told)
    gated = {name: _worthwhile(model, name, found, result[name], kinds) for name, found in may_gate.items()}
    gated = {name: found for name, found in gated.items() if found}
    for name, found in _time_gated(model, gated, forms, others, told).items():
        kinds.setdefault(name, []).insert(0, replace(result[name], **found))
    for name, found in _time_coarse(model, may_gate, result, others, told, kinds).items():
        kinds.setdefault(name, []).append(found)
    result |= {name: replace(first, others=tuple(rest)) for name, (first, *rest) in kinds.items()}
    for name, found in times.items():
        every = dict(zip((exact_form(model.sites[name], skip) for skip in skips[name]), found, strict=True))
        result[name] = replace(result[name], every=every)
    told.finish()
    return result


def _time_on_bytes(model: Model, sizes: Mapping[str, tuple[int, ...]], others: Mapping[str, Entry], told: _Told):
    """Return the times of layers on bytes: exact, behind their little modules, and gated, all in the same turns.

    A gate is timed around the smallest little module; larger ones add to it what they take longer alone. Where it is
    slower than the exact form with every tile closed there is none.
    """
    entries = {
        name: [
            others[name],
            *(told(bytes_entry, model, name, size) for size in found),
            *(gated_bytes_entries(model, name, found[0]) if model.gates(name) else ()),
        ]
        for name, found in sizes.items()
    }
    found = {}
    for name, (exact, *rest) in in_turns(model, entries, others, BYTE_TURNS).items():
        alone = dict(zip(sizes[name], rest, strict=False))
        found[name], ends = SiteCosts(EXACT_BYTES, exact, LITTLE_BYTES, {}, {}, alone), rest[len(alone) :]
        if ends and ends[0] < exact:
            more = {size: time - rest[0] for size, time in alone.items()}
            closed, opened = ({size: end + time for size, time in more.items()} for end in ends)
            found[name] = replace(found[name], gated=GATED_BYTES, closed=closed, opened=opened)
    return found


def _time_gated(
    model: Model, sizes: Mapping[str, tuple[int, ...]], forms: Forms, others: Mapping[str, Entry], told: _Told
) -> dict[str, dict]:
    """Return what `SiteCosts` of layers with a gate consists of, beside their exact forms `forms`."""
    zeros = {name: float((model.observations[name].inputs[0] == 0).mean()) for name in sizes}
    candidates = {name: gated_forms(model.sites[name], forms[name], zeros[name]) for name in sizes}
    # Which form a little module's projection has, and whether open tiles skip zeros, is seen at its smallest size: by
    # the time with half of the tiles open, or of what is closed and what is open together.
    first = {
        name: [entry for form in found for entry in told(gated_entries, model, name, form, sizes[name][0])]
        for name, found in candidates.items()
    }
    least = in_turns(model, first, others)
    half = {name: np.array(found[::3]) + np.array(found[1::3]) for name, found in least.items()}
    chosen = {name: int(np.argmin(half[name])) for name, found in candidates.items() if found}
    larger = {
        name: [
            entry for size in sizes[name][1:] for entry in told(gated_entries, model, name, candidates[name][at], size)
        ]
        for name, at in chosen.items()
    }
    rest, result = in_turns(model, larger, others), {}
    singles = _time_singles(model, sizes, {name: candidates[name][at] for name, at in chosen.items()}, others, told)
    for name, at in chosen.items():
        every = [*least[name][3 * at : 3 * at + 3], *rest[name]]
        parts = (dict(zip(sizes[name], every[part::3], strict=True)) for part in range(3))
        result[name] = dict(zip(("closed", "opened", "alone"), parts, strict=True)) | {
            "gated": candidates[name][at],
            "singles": singles.get(name, {}),
        }
    return result


def _time_singles(
    model: Model, sizes: Mapping[str, tuple[int, ...]], forms: Forms, others: Mapping[str, Entry], told: _Told
) -> dict[str, dict[int, SingleCosts]]:
    """Return the times of convolutions with a gate for each output, their little modules as in `forms`."""
    if "singles" not in model.options.gates:
        return {}
    entries, densities = {}, {}
    for name in (name for name in forms if model.sites[name].conv):
        found = [told(singles_entries, model, name, singles_form(forms[name]), size) for size in sizes[name]]
        entries[name] = [entry for timed, _ in found for entry in timed]
        densities[name] = [density for _, density in found]
    times, result = in_turns(model, entries, others), {}
    for name, found in times.items():
        of_sizes = zip(sizes[name], densities[name], found[::3], found[1::3], found[2::3], strict=True)
        result[name] = {size: SingleCosts(*rest) for size, *rest in of_sizes}
    return result


def _time_copies(
    model: Model,
    sizes: Mapping[str, tuple[int, ...]],
    exact: Mapping[str, SiteCosts],
    others: Mapping[str, Entry],
    told: _Told,
) -> dict[str, list[SiteCosts]]:
    """Return the times of layers behind copies, which alone have bytes in and out, as they have beside each other."""
    copied = [name for name in sizes if set(COPIES) & set(model.kinds(name))]
    if not copied:
        return {}
    alone = copies_alone(model, copied)
    kinds = {name: [kind for kind in model.kinds(name) if kind in COPIES] for name in copied}
    # Of whatever bits, they are the same kernels: what differs is noise.
    entries = {
        name: [*told(gated_entries, model, name, ("rows", of[0]), 0)[:2], told(alone, name)]
        for name, of in kinds.items()
    }
    times = in_turns(model, entries, others)
    return {
        name: [replace(exact[name], gated=("rows", kind), **_named({0: time} for time in times[name])) for kind in of]
        for name, of in kinds.items()
    }


def _time_coarse(
    model: Model,
    sizes: Mapping[str, tuple[int, ...]],
    exact: Mapping[str, SiteCosts],
    others: Mapping[str, Entry],
    told: _Told,
    known: Mapping[str, list[SiteCosts]],
) -> dict[str, SiteCosts]:
    """Return the times of layers behind coarse little modules of what two sizes of projections cost."""
    form, found = ("rows", COARSE), {}
    for name, directions in sizes.items():
        wider = dict.fromkeys(min(COARSE_TIMES * size, len(model.sites[name].weight)) for size in directions[:2])
        found[name] = _worthwhile(model, name, tuple(wider), exact[name], known, COARSE)
    found = {name: directions for name, directions in found.items() if directions}
    entries = {
        name: [e for size in of for e in told(gated_entries, model, name, form, size)] for name, of in found.items()
    }
    times = in_turns(model, entries, others) if entries else {}
    return {
        name: replace(
            exact[name], gated=form, **_named(dict(zip(found[name], of[part::3], strict=True)) for part in range(3))
        )
        for name, of in times.items()
    }


def _named(parts) -> dict[str, dict[int, float]]:
    return dict(zip(("closed", "opened", "alone"), parts, strict=True))


def _worthwhile(
    model: Model,
    name: str,
    sizes: tuple[int, ...],
    exact: SiteCosts,
    known: Mapping[str, list[SiteCosts]],
    kind: str = "projection",
) -> tuple[int, ...]:
    """Return the sizes of little modules of a kind that may be faster than the layer's copy, which is better than they.

    What they take at least is their share of the layer's multiplications.
    """
    site = model.sites[name]
    if kind not in model.kinds(name):
        return ()
    fastest = min((copy.alone[0] for copy in known.get(name, ()) if copy.gated[1] in COPIES), default=np.inf)
    shares = {size: little_operations(site, kind, size) / all_operations(site) for size in sizes}
    return tuple(size for size, share in shares.items() if fastest > share * exact.exact)


class _Told:
    """Calls functions, and says how many."""

    def __init__(self, progress: Callable[[str, int, int], None], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, function: Callable, *arguments):
        self._progress("layers alone", self._done, max(self._total, self._done + 1))
        self._done += 1
        return function(*arguments)

    def finish(self) -> None:
        """Say that all is done."""
        self._progress("layers alone", self._done, self._done)
