"""Memory that a compiled ``main`` reads and writes, as numpy arrays."""

from __future__ import annotations

import mmap
import sys
from typing import TYPE_CHECKING

import numpy as np

from schedules.cpu import aligned_empty
from tvm_dual.errors import DataError

if TYPE_CHECKING:
    from tvm_dual.metadata import Tensor

_HUGE_PAGE = 2 << 20
#: Bytes of a cache line.
_LINE = 64


class Buffer:
    """A numpy array that ``main`` reads or writes, aligned as the kernels' vector loads want it.

    Attributes
    ----------
    view : ndarray
    below : int or None
        What values must be smaller than, if they select from a table.
    places : dict of ndarray
        The same memory by the shapes that may be copied in: with and without axes of length one.
    """

    def __init__(self, tensor: Tensor, view: np.ndarray | None = None, distance: np.ndarray | None = None) -> None:
        """Wrap `view`, or allocate; an extent of -1 is allocated when an array arrives.

        ``distance: int64[1]`` is where the kernel reads by how many values an array lies behind `view` that is left
        where it is; without it all are copied in.
        """
        self._described, self.below, self.places, self._distance = tensor, tensor.below, {}, distance
        # One for now: an empty view has no aligned address.
        shape = tuple(1 if extent < 0 else extent for extent in tensor.shape)
        self._take(aligned_empty(shape, tensor.dtype) if view is None else view)
        self.view[...] = 0

    def _take(self, view: np.ndarray) -> None:
        self.view, self.dtype, self._home = view, view.dtype, _address(view)
        self.places.clear()
        for shape in (tuple(extent for extent in view.shape if extent != 1), view.shape):
            self.places[shape] = view.reshape(shape)

    def fill(self, array: np.ndarray, squeeze: bool = False) -> None:
        """Copy an array in, or leave it where it is until the call is over.

        Raises
        ------
        DataError
            If its dtype or shape is wrong, or an index is outside the table that it selects from; with `squeeze`,
            axes of length one may be missing.
        """
        name, shape = self._described.name, self._described.shape
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype:
            found = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            wanted = f"a numpy array, {self.dtype} {shape}"
            raise DataError(f"input '{name}': {found}; accepted: {wanted}")
        if self.below is not None and array.size and not 0 <= array.min() <= array.max() < self.below:
            raise DataError(
                f"input '{name}': values from {array.min()} to {array.max()}; accepted: 0 to {self.below - 1}, the "
                "rows of the table that they select from"
            )
        if squeeze and -1 not in shape and _plain(array.shape) == _plain(shape):
            self.put(array, shape)
            return
        if array.shape != self.view.shape:
            if not _fits(array.shape, shape):
                raise DataError(f"input '{name}': {self._complaint(array, squeeze)}")
            self._take(aligned_empty(array.shape, self._described.dtype))
        self.put(array, array.shape)

    def put(self, array: np.ndarray, shape: tuple[int, ...]) -> None:
        """Do what `fill` does with an array that fits `shape`, a key of `places`."""
        if self._distance is not None:
            flags = array.flags
            if flags.c_contiguous and flags.aligned:
                self._distance[0] = (_address(array) - self._home) // self.dtype.itemsize
                return
            self._distance[0] = 0
        self.places[shape][...] = array.reshape(shape)

    def _complaint(self, array: np.ndarray, squeeze: bool) -> str:
        shape = self._described.shape
        plain = f", or {_plain(shape)}" if squeeze and _plain(shape) != shape else ""
        any_ = ", -1 is any length from 1 on" if -1 in shape else ""
        return f"shape {array.shape}; accepted: {self.dtype} {shape}{plain}{any_}"


def _address(array: np.ndarray) -> int:
    """Return where an array starts; ``array.ctypes`` takes twice as long."""
    return array.__array_interface__["data"][0]


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its axes of length one."""
    return tuple(extent for extent in shape if extent != 1)


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array fits a shape with open extents."""
    if len(found) != len(wanted) or -1 not in wanted or 0 in found:
        return False
    return all(want in (-1, have) for want, have in zip(wanted, found, strict=True))


class Recycled:
    """Memory for a large output: that of an earlier one which nobody holds any more, or else new memory.

    New memory costs more than what is written into it: 1.6 MB, which the system hands out page by page, take 100
    microseconds.
    """

    #: Outputs that are remembered; a caller who keeps more of them has new memory at every call.
    _MOST = 4

    def __init__(self, place: np.ndarray, distance: np.ndarray) -> None:
        """Take the place in the kernel's memory that stands for the output; ``distance: int64[1]``: see `Buffer`."""
        self._shape, self._dtype, self._size = place.shape, place.dtype, place.nbytes
        self._home, self._distance = _address(place), distance
        self._owners = [self._allocate()]
        self._unheld = self._holders()[0]

    def _allocate(self) -> np.ndarray:
        return np.empty(self._size + _LINE, "uint8")

    def _holders(self) -> list[int]:
        """Return how many references each memory has: an array that is part of it holds one."""
        return [sys.getrefcount(owner) for owner in self._owners]

    def next(self) -> np.ndarray:
        """Return an array whose memory is nobody else's, and tell the kernel of it."""
        holders = self._holders()
        if self._unheld in holders:
            owner = self._owners[holders.index(self._unheld)]
        else:
            owner = self._allocate()
            self._owners = [*self._owners[-self._MOST + 1 :], owner]
        start = -_address(owner) % _LINE
        self._distance[0] = (_address(owner) + start - self._home) // self._dtype.itemsize
        return np.ndarray(self._shape, self._dtype, owner, start)


def huge_pages(size: int) -> np.ndarray:
    """Return `size` zero bytes, ``uint8``, in huge pages if the system gives them.

    A gate's rows lie all over the weights; with 4 kB pages nearly each of them misses the TLB.
    """
    # Private: shared anonymous memory gets no huge pages.
    region = mmap.mmap(-1, size + 2 * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(region, "uint8")
    start = -memory.ctypes.data % _HUGE_PAGE
    return memory[start : start + size]
