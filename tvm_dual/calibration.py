"""Calibration: the user's data, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tvm_dual.errors import DataError, ModelError
from tvm_dual.metadata import Tensor


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
