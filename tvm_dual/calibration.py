"""Calibration: the user's data, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tvm_dual.errors import DataError, ModelError
from tvm_dual.metadata import Tensor


@dataclass(frozen=True, eq=False)
class InputStream:
    """Calls of the model, one after the other; those of a streaming model share a state.

    Its length is the number of calls, a slice is some of them, and iteration gives the arguments of each.

    Attributes
    ----------
    arrays : tuple of ndarray, (calls, *input shape)
        By input, in the model's order.
    """

    arrays: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, calls: slice) -> InputStream:
        return InputStream(tuple(array[calls] for array in self.arrays))

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        for call in range(len(self)):
            yield tuple(array[call, ...] for array in self.arrays)


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Checked inputs.

    Attributes
    ----------
    streams : tuple of InputStream
        One per item of the user's data.
    digest : str
        SHA-256 over all streams.
    """

    streams: tuple[InputStream, ...]
    digest: str

    @property
    def calls(self) -> int:
        """Number of calls in all streams."""
        return sum(len(stream) for stream in self.streams)

    @property
    def vectors_per_call(self) -> int:
        """Most vectors, or indices of vectors, that a call takes of one input: more than one for sequences."""
        arrays = (array for stream in self.streams for array in stream.arrays)
        return max(int(np.prod(a.shape[1:] if a.dtype.kind == "i" else a.shape[1:-1])) for a in arrays)


def check_calibration(data: Iterable, inputs: tuple[Tensor, ...]) -> CalibrationData:
    """Check calibration data against the model's inputs.

    Parameters
    ----------
    data : iterable
        Each item is one stream: an array per input, as a dict by the inputs' names or as a tuple in their order,
        nested or not; of a model with one input also the array alone. An array is ``(calls, *shape)`` for the input's
        shape of one call; where no extent is open, axes of length one may be left out.
    inputs : tuple of Tensor
        The model's inputs.

    Raises
    ------
    DataError
        If there is none, an item lacks an input or has unknown ones, or an array has the wrong shape or dtype, or holds
        NaN, infinity, or an index that the model has no row for.
    ModelError
        If the model has no input.
    """
    if not inputs:
        raise ModelError("model: has no inputs; accepted: models that compute something from one or more")
    if not _are_streams(data):
        raise DataError(
            f"calibration data: found {type(data).__name__}; accepted: an iterable (a list, a generator) of streams, "
            f"each {_accepted_item(inputs)}. Wrap a single stream in a list"
        )
    every = (_checked_stream(item, inputs, f"calibration item {i}") for i, item in enumerate(data))
    streams = tuple(stream for stream in every if len(stream))
    if not streams:
        raise DataError(f"calibration data: empty; accepted: at least one call, {_accepted_item(inputs)}")
    digest = hashlib.sha256()
    for stream in streams:
        for array in stream.arrays:
            digest.update(array.tobytes())
    return CalibrationData(streams, digest.hexdigest())


def call_shapes(data: Iterable, inputs: tuple[Tensor, ...]) -> dict[str, tuple[int, ...]]:
    """Return by input the shape of one call, where all items agree on it; -1 are extents that they do not agree on.

    Parameters
    ----------
    data, inputs
        As `check_calibration` takes them, which names what is wrong with them: that is left out here. A batch that is
        open counts as left out, and is 1, where an item has as many axes as the input.
    """
    names, found = [described.name for described in inputs], {}
    for item in data if _are_streams(data) else ():
        given = _by_input(item, names)
        for described, array in zip(inputs, given or (), strict=False):
            shape = tuple(getattr(array, "shape", ()))[1:]
            if len(shape) == len(described.shape) - 1 and described.shape[0] in (-1, 1):
                shape = (1, *shape)
            if len(shape) == len(described.shape):
                known = found.setdefault(described.name, shape)
                found[described.name] = tuple(a if a == b else -1 for a, b in zip(known, shape, strict=True))
    return found


def _are_streams(data) -> bool:
    return isinstance(data, Iterable) and not isinstance(data, (np.ndarray, Mapping, str))


def _by_input(item, names: list[str]) -> list | None:
    """Return what an item holds for each input; None if that are not as many values, or other names."""
    if isinstance(item, Mapping):
        return [item[name] for name in names] if set(item) == set(names) else None
    given = _flat(item) if isinstance(item, tuple) or len(names) > 1 else [item]
    return given if len(given) == len(names) else None


def _checked_stream(item, inputs: tuple[Tensor, ...], label: str) -> InputStream:
    names = [described.name for described in inputs]
    given = _by_input(item, names)
    if given is None:
        found = type(item).__name__
        if isinstance(item, Mapping):
            found = f"arrays by the names {sorted(map(str, item))}"
        elif isinstance(item, tuple):
            found = f"{len(_flat(item))} arrays"
        raise DataError(f"{label}: {found}; accepted: {_accepted_item(inputs)}")
    labelled = [f"{label}, input '{name}'" for name in names]
    arrays = tuple(map(_checked_array, given, inputs, labelled))
    if len({len(array) for array in arrays}) > 1:
        found = ", ".join(f"{len(array)} of '{name}'" for name, array in zip(names, arrays, strict=True))
        raise DataError(f"{label}: numbers of calls {found}; accepted: as many calls of every input")
    _refuse_other_extents(arrays, inputs, label)
    return InputStream(arrays)


def _flat(item) -> list:
    """Return what a tuple holds, and the tuples in it; anything else alone."""
    return [value for part in item for value in _flat(part)] if isinstance(item, tuple) else [item]


def _checked_array(value, described: Tensor, label: str) -> np.ndarray:
    """Return one input of one stream, ``(calls, *shape)``."""
    shape, dtype, below = described.shape, described.dtype, described.below
    accepted = _accepted_array(described)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{label}: cannot be made an array ({error}); accepted: {accepted}") from error
    if array.dtype != dtype:
        raise DataError(f"{label}: dtype {array.dtype}; accepted: {accepted}. Convert with .astype('{dtype}')")
    if array.ndim < 1 or not _matches(array.shape[1:], shape):
        raise DataError(f"{label}: shape {array.shape}; accepted: {accepted}")
    if not np.isfinite(array).all():
        raise DataError(f"{label}: holds NaN or infinity; accepted: finite {accepted}. Clean the data first")
    if below is not None and array.size and not 0 <= array.min() <= array.max() < below:
        raise DataError(f"{label}: values from {array.min()} to {array.max()}; accepted: 0 to {below - 1}")
    per_call = array.shape[1:] if -1 in shape else shape
    return np.ascontiguousarray(array.reshape(len(array), *per_call))


def _refuse_other_extents(arrays: tuple[np.ndarray, ...], inputs: tuple[Tensor, ...], label: str) -> None:
    """Refuse inputs that disagree on an open extent, such as the batch."""
    seen: dict[str, tuple[int, str]] = {}
    for array, described in zip(arrays, inputs, strict=True):
        for symbol, extent in zip(described.symbols, array.shape[1:], strict=False):
            known, name = seen.setdefault(symbol, (extent, described.name))
            if symbol and extent != known:
                raise DataError(
                    f"{label}, input '{described.name}': shape {array.shape} has {extent} where '{name}' has {known}; "
                    f"accepted: the same '{symbol}' in both"
                )


def _matches(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape is the wanted one; without open extents, axes of length one may be left out."""
    if -1 in wanted:
        fits = all(f == w or (w == -1 and f > 0) for w, f in zip(wanted, found, strict=False))
        return len(found) == len(wanted) and fits
    return [extent for extent in found if extent != 1] == [extent for extent in wanted if extent != 1]


def _accepted_array(described: Tensor) -> str:
    shape = described.shape if -1 in described.shape else [extent for extent in described.shape if extent != 1]
    extents = ("any from 1 on" if extent == -1 else str(extent) for extent in shape)
    return f"{described.dtype} of shape ({', '.join(('calls', *extents))})"


def _accepted_item(inputs: tuple[Tensor, ...]) -> str:
    if len(inputs) == 1:
        return f"an array, {_accepted_array(inputs[0])}"
    arrays = ", ".join(f"'{described.name}': {_accepted_array(described)}" for described in inputs)
    return f"a dict of arrays by input, {{{arrays}}}, or a tuple of them in this order"
