"""Quality of a library: the user's ``evaluate``, or agreement with the dense model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from tvm_dual.calibration import CalibrationData, InputStream
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
    dense: DualLibrary, data: CalibrationData, evaluate: Callable | None, max_drop: float | None
) -> Quality:
    """Return the judge of a build.

    Parameters
    ----------
    dense : DualLibrary
        The exact fp32 model.
    data : CalibrationData
        For agreement.
    evaluate : callable, optional
        From a library to a number, higher is better.
    max_drop : float, optional
        Accepted drop; needed with `evaluate`.

    Raises
    ------
    EvaluationError
        If `evaluate` raises or returns no finite number, `max_drop` is missing or negative, or there is no `evaluate`
        and the dense model gives NaN or infinity.
    """
    if max_drop is not None and not (isinstance(max_drop, Real) and max_drop >= 0):
        raise EvaluationError(f"max_drop: found {max_drop!r}; accepted: a number that is zero or more")
    if evaluate is not None:
        if max_drop is None:
            raise EvaluationError(
                "evaluate is given without max_drop; say how much lower than the dense model's is fine"
            )
        return Quality("evaluate", lambda library: _checked(evaluate, library), _checked(evaluate, dense), max_drop)
    streams = _head(dense, data.streams)
    wanted = outputs_of(dense, streams)
    if not all(np.isfinite(values).all() for values in wanted):
        raise EvaluationError(
            "the dense model gives NaN or infinity on the calibration data, which agreement cannot be computed with; "
            "accepted: finite outputs. Pass evaluate, or export the model with finite outputs alone"
        )
    power = power_of(wanted)

    def agreement(library: DualLibrary) -> float:
        found = outputs_of(library, streams)
        return 1 - float(np.sqrt(mean_square([f - w for f, w in zip(found, wanted, strict=True)]) / power))

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


def _head(library: DualLibrary, streams: tuple[InputStream, ...]) -> tuple[InputStream, ...]:
    """Return the beginnings of streams, as many calls in all as agreement is computed on."""
    values = sum(found.size for found in outputs_of(library, (streams[0][:1],)))
    calls = max(1, min(AGREEMENT_CALLS, AGREEMENT_VALUES // values))
    streams = streams[:calls]
    return tuple(stream[: calls // len(streams)] for stream in streams)


def outputs_of(library: DualLibrary, streams: Sequence[InputStream]) -> list[np.ndarray]:
    """Return what each output was over all calls, ``(vectors, features)``; an open last axis has no features."""
    features = [tensor.shape[-1] if tensor.shape and tensor.shape[-1] > 0 else 1 for tensor in library.metadata.outputs]
    found: list[list[np.ndarray]] = [[] for _ in features]
    for stream in streams:
        run = library.stream()
        for call in stream:
            values = run(*call)
            for kept, value, n in zip(found, values if isinstance(values, tuple) else (values,), features, strict=True):
                kept.append(value.reshape(-1, n).astype("float32", copy=False))
    return [np.concatenate(values) for values in found]


def power_of(outputs: list[np.ndarray]) -> float:
    """Return what errors of outputs are divided by: their mean square about their means."""
    return mean_square([values - values.mean(axis=0) for values in outputs]) or 1.0


def mean_square(arrays: list[np.ndarray]) -> float:
    """Return the mean square of all elements."""
    return sum(float(np.square(array).sum(dtype="float64")) for array in arrays) / sum(a.size for a in arrays)
