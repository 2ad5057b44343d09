"""Calibration: the user's data, checked, and what each site reads while the dense model sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from tvm_dual.errors import DataError, ModelError
from tvm_dual.library import DualLibrary
from tvm_dual.metadata import Tensor
from tvm_dual.sites import Site

#: Calls that are kept for fitting; beyond a few thousand the fits do not change. They are kept in runs
#: of this length, so that recurrent layers can be followed through time.
MAX_SAMPLES, RUN = 24_000, 400


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Checked inputs.

    Attributes
    ----------
    streams : tuple of ndarray, (calls, *input shape)
        For a streaming model one item is one stream, whose calls share a state; else one item is
        the calls of one array, or a single call.
    digest : str
        SHA-256 over all streams.
    """

    streams: tuple[np.ndarray, ...]
    digest: str

    @property
    def calls(self) -> int:
        """Number of calls in all streams."""
        return sum(len(stream) for stream in self.streams)


def calls_for(streams: Sequence[np.ndarray], vectors: int) -> int:
    """Return how many calls see about `vectors` vectors: a call may be a sequence of them."""
    longest = max(int(np.prod(stream.shape[1:-1])) for stream in streams)
    return max(1, vectors // longest)


@dataclass(frozen=True, eq=False)
class Observations:
    """What one site read.

    Attributes
    ----------
    inputs : tuple of ndarray, float32, (samples, length)
        The input, then the states: h of a recurrent layer, and c of an LSTM.
    runs : tuple of int
        Where a run of consecutive calls of one stream begins.
    """

    inputs: tuple[np.ndarray, ...]
    runs: tuple[int, ...] = (0,)


def check_calibration(data: Iterable, inputs: tuple[Tensor, ...]) -> CalibrationData:
    """Check calibration data against the model's input.

    Parameters
    ----------
    data : iterable of ndarray of the input's dtype
        Each item is ``(calls, *shape)`` for the input's shape of one call; axes of length one may be
        left out.
    inputs : tuple of Tensor
        The model's inputs, of which there must be one.

    Raises
    ------
    DataError
        If there is none, or an item has the wrong shape or dtype, or holds NaN, infinity, or an index that the model
        has no row for.
    """
    if len(inputs) != 1:
        raise ModelError(
            f"model: {len(inputs)} inputs ({', '.join(t.name for t in inputs)}); accepted: models with one"
        )
    name, shape, dtype, below = inputs[0].name, inputs[0].shape, inputs[0].dtype, inputs[0].below
    if isinstance(data, np.ndarray) or not isinstance(data, Iterable):
        raise DataError(
            f"calibration data: found {type(data).__name__}; accepted: an iterable (a list, a generator) of {dtype} "
            "arrays, one per stream. Wrap a single array in a list"
        )
    digest, streams = hashlib.sha256(), []
    plain = tuple(extent for extent in shape if extent != 1)
    accepted = f"{dtype} of shape (calls, {', '.join('any' if extent == -1 else str(extent) for extent in plain)})"
    for i, item in enumerate(data):
        label = f"calibration item {i} for input '{name}'"
        array = np.asarray(item)
        if array.dtype != dtype:
            raise DataError(f"{label}: dtype {array.dtype}; accepted: {accepted}. Convert with .astype('{dtype}')")
        if array.ndim < 1 or not _matches(array.shape[1:], shape):
            raise DataError(f"{label}: shape {array.shape}; accepted: {accepted}")
        if not np.isfinite(array).all():
            raise DataError(f"{label}: holds NaN or infinity; accepted: finite {accepted}. Clean the data first")
        if below is not None and array.size and not 0 <= array.min() <= array.max() < below:
            raise DataError(f"{label}: values from {array.min()} to {array.max()}; accepted: 0 to {below - 1}")
        if len(array):
            per_call = array.shape[1:] if -1 in shape else shape
            streams.append(np.ascontiguousarray(array.reshape(len(array), *per_call)))
            digest.update(streams[-1].tobytes())
    if not streams:
        raise DataError(f"calibration data: empty; accepted: at least one array, {accepted}")
    return CalibrationData(tuple(streams), digest.hexdigest())


def _matches(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape is the wanted one; without open extents, axes of length one may be left out."""
    if -1 in wanted:
        return len(found) == len(wanted) and all(w in (-1, f) for w, f in zip(wanted, found, strict=True))
    return [extent for extent in found if extent != 1] == [extent for extent in wanted if extent != 1]


def observe(
    library: DualLibrary, data: CalibrationData, sites: Mapping[str, Site], progress=None
) -> dict[str, Observations]:
    """Run the dense model over the data and collect what each site reads.

    Parameters
    ----------
    library : DualLibrary
        Built with ``ExposeInputs``: further outputs give the sites' inputs.
    data : CalibrationData
    sites : mapping of str to Site
        The sites that it gives the inputs of.
    progress : callable, optional
        Called with ``(calls done, calls in all)``.
    """
    names = library.metadata.observed
    collected = {name: _Collected(site) for name, site in sites.items()}
    sequences = any(f"{name}.y" in names for name in sites)
    most, length = (calls_for(data.streams, n) if sequences else n for n in (MAX_SAMPLES, RUN))
    every, carried = max(1, -(-data.calls // most)), bool(library.metadata.states)
    done, following = 0, False
    for stream in data.streams:
        run, following = library.stream(), False
        for frame in stream:
            run(frame)
            keep = done // length % every == 0
            if keep:
                seen = dict(zip(names, library.last_extras(), strict=True))
                for name, found in collected.items():
                    found.add({key.split(".")[1]: seen[key] for key in names if key.split(".")[0] == name}, following)
            following = keep and (carried or not sequences)
            done += 1
            if progress:
                progress(done, data.calls)
    return {name: found.observations() for name, found in collected.items()}


class _Collected:
    """What one site read in the calls so far."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._runs: list[int] = []
        self._count = 0

    def add(self, seen: dict[str, np.ndarray], following: bool) -> None:
        """Add a call; `following` says that it goes on where the last one added ended."""
        if "y" in seen:
            batch = seen["0"].shape[1]
            for sample in range(batch):
                self._append(_over_time(self._site, seen, sample), following and batch == 1)
        else:
            self._append(tuple(value.reshape(-1, value.shape[-1])[-1:] for _, value in sorted(seen.items())), following)

    def _append(self, values: tuple[np.ndarray, ...], following: bool) -> None:
        if not following:
            self._runs.append(self._count)
        self._parts.append(values)
        self._count += len(values[0])

    def observations(self) -> Observations:
        return Observations(
            tuple(np.concatenate(arrays) for arrays in zip(*self._parts, strict=True)), tuple(self._runs)
        )


def _over_time(site: Site, seen: dict[str, np.ndarray], sample: int) -> tuple[np.ndarray, ...]:
    """Return what a recurrent layer read at each step of a sequence: the input, and the states before the step."""
    x = seen["0"][:, sample]
    h = np.concatenate([seen["1"][:, sample], seen["y"][:-1, 0, sample]])
    if site.kind != "lstm":
        return x, h
    # The cell state is in no output, but all gates follow from inputs and states h, which are.
    gates = x @ site.weight.T + site.bias + h @ site.recurrence.T + site.recurrent_bias
    take, _, keep, new = np.split(gates, 4, axis=1)
    take, keep, new = expit(take), expit(keep), np.tanh(new)
    c = np.empty_like(h)
    before = seen["2"][0, sample]
    for t in range(len(x)):
        c[t] = before
        before = keep[t] * before + take[t] * new[t]
    return x, h, c
