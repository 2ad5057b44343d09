"""Forms: how the matrices of a site are computed, as pairs of the input's (a convolution's gate) and the state's.

A convolution's second is what its little module reads.
"""

from __future__ import annotations

from relay_passes.site_plan import COARSE, COPIES, GATED
from tvm_dual.sites import Site

#: Forms that a little module takes part in.
APPROXIMATE = GATED | {"little"}
#: Form of the input's and the state's matrix, by site.
Forms = dict[str, tuple[str, str]]
#: Forms of a convolution on bytes: exact, behind its little module alone, or gated. On bf16 the second is of floats.
BYTE_FORMS = EXACT_BYTES, LITTLE_BYTES, GATED_BYTES = ("dense", ""), ("little", "dense"), ("rows", "dense")

#: Share of zeros in a convolution's input from which on skipping them in open tiles is tried.
MANY_ZEROS = 0.5


def gate_of(form: tuple[str, str]) -> str:
    """Return what a form's gate decides on: ``singles``, of a convolution, or ``rows``."""
    return "singles" if "singles" in form else "rows"


def trains(form: tuple[str, str]) -> bool:
    """Whether a form has a little module that can be trained: one with a projection."""
    return bool(APPROXIMATE & set(form)) and form[1] not in (*COPIES, COARSE)


def exact_form(site: Site, skip: bool) -> tuple[str, str]:
    """Return the form that computes every row; with `skip`, of the columns of nonzero inputs alone."""
    return ("columns" if skip else "dense", "dense" if site.hidden else "")


def mode_form(site: Site, mode: str) -> tuple[str, str]:
    """Return the form of a site where no choice is left: every row, zero skipping, or the little module."""
    if mode == "little" and site.conv and site.can_gate:
        return ("little", "columns" if site.nonnegative else "dense")
    if mode == "little" and site.can_gate:
        return ("columns", "little") if site.hidden and site.nonnegative else _little_form(site)
    return exact_form(site, mode != "dense" and site.nonnegative)


def _little_form(site: Site) -> tuple[str, str]:
    if site.nonnegative:
        return ("columns", "")
    return ("little", "little" if site.hidden else "")


def little_alone(form: tuple[str, str]) -> tuple[str, str]:
    """Return a form with the little module in place of gated rows."""
    return tuple("little" if part in GATED else {"nonzeros": "columns"}.get(part, part) for part in form)


def gated_form(site: Site, exact: tuple[str, str], gate: str = "rows") -> tuple[str, str]:
    """Return the form with a gate wherever `exact` computes every row; a convolution is gated in any case.

    `gate` is that of a convolution: ``rows``, of tiles, or ``singles``.
    """
    if site.conv:
        return (gate, exact[0])
    return tuple("rows" if part == "dense" else part for part in exact)


def gated_forms(site: Site, exact: tuple[str, str], zeros: float) -> list[tuple[str, str]]:
    """Return the forms with a gate that may be fastest; `zeros` is the share of them in the input."""
    form = gated_form(site, exact)
    if "rows" not in form:
        return []
    # Of few channels, listing nonzero inputs may take longer than what it spares.
    found = [form, ("rows", "dense")] if site.conv and exact[0] == "columns" else [form]
    return [*found, ("rows", "nonzeros")] if site.conv and site.nonnegative and zeros >= MANY_ZEROS else found


def singles_form(form: tuple[str, str]) -> tuple[str, str]:
    """Return a convolution's form with a gate for each output in place of each tile; dot products skip no zeros."""
    return ("singles", {"nonzeros": "columns"}.get(form[1], form[1]))


def forms_beside(site: Site, form: tuple[str, str], exact: tuple[str, str]) -> list[tuple[str, str]]:
    """Return forms that differ from `form` in one matrix: exact instead of gated, gated instead of skipping."""
    if site.conv:
        others = [part for part in ("dense", "columns", "nonzeros") if part != form[1]] if site.nonnegative else []
        # Open outputs are dot products, which skip nothing.
        return [exact, *((form[0], part) for part in others if part != "nonzeros" or form[0] == "rows")]
    found = []
    for part, value in enumerate(form):
        other = exact[part] if value == "rows" else "rows" if value == "columns" else None
        changed = (*form[:part], other, *form[part + 1 :])
        # A recurrent layer's little module predicts the state's half: it is gated if the input's is.
        if other is not None and (not site.hidden or changed != ("rows", "dense")):
            found.append(changed)
    return found
