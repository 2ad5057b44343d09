"""Quality of a library: the user's ``evaluate``, or agreement with the dense model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tvm_dual.errors import EvaluationError
from tvm_dual.library import DualLibrary

#: Allowed loss of agreement where the caller says nothing: 1 is equality with the dense model.
DEFAULT_AGREEMENT_DROP = 0.05
#: Kernels that add in another order differ by this much; a budget of zero means "exact", not "bit by bit".
ROUNDING = 1e-5
#: Calls that agreement is computed on, at most, and values of outputs: more would not change a mean square.
AGREEMENT_CALLS, AGREEMENT_VALUES = 3000, 2_000_000


@dataclass(frozen=True, eq=False)
class Quality:
    """Judges libraries.

    Attributes
    ----------
    kind : str
        ``evaluate`` or ``agreement``.
    judge : callable
        From a library to a number; higher is better.
    dense : float
        The dense model's number.
    max_drop : float
        How much lower is accepted.
    """

    kind: str
    judge: Callable[[DualLibrary], float]
    dense: float
    max_drop: float

    def accepts(self, quality: float) -> bool:
        """Whether `quality` is within the budget."""
        return quality >= self.dense - self.max_drop - ROUNDING * max(1.0, abs(self.dense))


def make_quality(
    dense: DualLibrary, streams: tuple[np.ndarray, ...], evaluate: Callable | None, max_drop: float | None
) -> Quality:
    """Return the judge of a build.

    Parameters
    ----------
    dense : DualLibrary
        The exact fp32 model.
    streams : tuple of ndarray
        Calibration data, for agreement.
    evaluate : callable, optional
        From a library to a number, higher is better.
    max_drop : float, optional
        Accepted drop; needed with `evaluate`.

    Raises
    ------
    EvaluationError
        If `evaluate` raises or returns no finite number, or `max_drop` is missing or negative.
    """
    if max_drop is not None and not max_drop >= 0:
        raise EvaluationError(f"max_drop: found {max_drop!r}; accepted: a number that is zero or more")
    if evaluate is not None:
        if max_drop is None:
            raise EvaluationError(
                "evaluate is given without max_drop; say how much lower than the dense model's is fine"
            )
        return Quality("evaluate", lambda library: _checked(evaluate, library), _checked(evaluate, dense), max_drop)
    streams = _head(dense, streams)
    wanted = _outputs(dense, streams)
    power = float(((wanted - wanted.mean(axis=0)) ** 2).mean()) or 1.0

    def agreement(library: DualLibrary) -> float:
        error = float(((_outputs(library, streams) - wanted) ** 2).mean())
        return 1 - float(np.sqrt(error / power))

    return Quality("agreement", agreement, 1.0, DEFAULT_AGREEMENT_DROP if max_drop is None else max_drop)


def _checked(evaluate: Callable, library: DualLibrary) -> float:
    try:
        value = evaluate(library)
    except Exception as error:
        raise EvaluationError(f"evaluate raised {type(error).__name__}: {error}; nothing was built") from error
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"evaluate returned {value!r}; accepted: one finite number, higher is better") from error
    if not np.isfinite(number):
        raise EvaluationError(f"evaluate returned {number}; accepted: one finite number, higher is better")
    return number


def _head(library: DualLibrary, streams: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Return the beginnings of all streams, as many calls in all as agreement is computed on."""
    values = _outputs(library, (streams[0][:1],)).size
    share = max(1, min(AGREEMENT_CALLS, AGREEMENT_VALUES // values) // len(streams))
    return tuple(stream[:share] for stream in streams)


def _outputs(library: DualLibrary, streams: tuple[np.ndarray, ...]) -> np.ndarray:
    found = []
    for stream in streams:
        run = library.stream()
        for frame in stream:
            values = run(frame)
            values = values if isinstance(values, tuple) else (values,)
            found.append(np.concatenate([value.reshape(-1) for value in values]))
    return np.stack(found)
