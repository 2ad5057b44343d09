"""The call itself: numpy arrays in fixed, aligned memory that a compiled ``main`` reads and writes.

A frame takes tens of microseconds, so what surrounds the kernel counts: buffers are made once, and
where ``main`` writes its results in place, its arguments are bound once, too.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from schedules.cpu import aligned_empty
from tvm_dual.errors import DataError

if TYPE_CHECKING:
    from tvm_dual.metadata import Metadata, Tensor


#: Bytes of a cache line, which arrays start at, and of a huge page.
_LINE, _HUGE_PAGE = 64, 2 << 20


class Buffer:
    """A TVM tensor and a numpy view of its memory, aligned as the kernels' vector loads want it."""

    def __init__(self, tensor: Tensor) -> None:
        """Allocate and zero; an extent of -1 is allocated when an array arrives."""
        self._described = tensor
        self._plain = tuple(extent for extent in tensor.shape if extent != 1)
        # One for now: an empty view has no aligned address.
        self._allocate(tuple(1 if extent < 0 else extent for extent in tensor.shape))

    def _allocate(self, shape: tuple[int, ...]) -> None:
        import tvm

        self.view = aligned_empty(shape, self._described.dtype)
        self.view[...] = 0
        self._plain_view = self.view.reshape([extent for extent in shape if extent != 1])
        self.tensor = tvm.runtime.from_dlpack(self.view)

    def fill(self, array: np.ndarray, squeeze: bool = False) -> None:
        """Copy an array in.

        Raises
        ------
        DataError
            If its dtype or shape is wrong, or an index is outside the table that it selects from; with `squeeze`,
            axes of length one may be missing.
        """
        name, shape = self._described.name, self._described.shape
        if not isinstance(array, np.ndarray) or array.dtype != self.view.dtype:
            found = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise DataError(f"input '{name}': {found}; accepted: a numpy array, {self.view.dtype} {shape}")
        below = self._described.below
        if below is not None and array.size and not 0 <= array.min() <= array.max() < below:
            raise DataError(
                f"input '{name}': values from {array.min()} to {array.max()}; accepted: 0 to {below - 1}, the rows of "
                "the table that they select from"
            )
        if array.shape == self.view.shape:
            np.copyto(self.view, array)
        elif squeeze and array.shape == self._plain_view.shape:
            np.copyto(self._plain_view, array)
        elif squeeze and -1 not in shape and tuple(extent for extent in array.shape if extent != 1) == self._plain:
            np.copyto(self.view, array.reshape(shape))
        elif _fits(array.shape, shape):
            self._allocate(array.shape)
            np.copyto(self.view, array)
        else:
            plain = f", or {self._plain}" if squeeze and self._plain != shape else ""
            any_ = ", -1 is any length from 1 on" if -1 in shape else ""
            raise DataError(f"input '{name}': shape {array.shape}; accepted: {self.view.dtype} {shape}{plain}{any_}")


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array fits a shape with open extents."""
    if len(found) != len(wanted) or -1 not in wanted or 0 in found:
        return False
    return all(want in (-1, have) for want, have in zip(wanted, found, strict=True))


class Runner:
    """Runs ``main`` on its buffers."""

    def __init__(self, module, metadata: Metadata, thresholds: list[Tensor], weights: list[np.ndarray]) -> None:
        """Load `module` on the CPU; TVM's thread pool gets as many threads as the library was built for."""
        # The variable is read when the pool starts: binding would put two processes on the same cores.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        import tvm
        from tvm.runtime.vm import VirtualMachine

        tvm.get_global_func("runtime.config_threadpool")(1, metadata.threads)
        machine = VirtualMachine(module, tvm.cpu())
        self.inputs = [Buffer(tensor) for tensor in metadata.inputs]
        self.states = [Buffer(tensor) for tensor in metadata.states]
        self.thresholds = [Buffer(tensor) for tensor in thresholds]
        given = zip((*self.inputs, *self.states), (*metadata.inputs, *metadata.states), strict=True)
        self._open = [(buffer, tensor) for buffer, tensor in given if tensor.symbols]
        self._arguments = [*self.inputs, *self.states, *self.thresholds]
        self._outputs = len(metadata.outputs)
        if metadata.in_place:
            self._results = [Buffer(tensor) for tensor in (*metadata.outputs, *metadata.states, *metadata.extras)]
            self._weights = in_huge_pages(weights)
            tensors = [buffer.tensor for buffer in self._arguments]
            tensors += [tvm.runtime.from_dlpack(weight) for weight in self._weights]
            tensors += [buffer.tensor for buffer in self._results]
            machine.save_function("main", "bound", *tensors, include_return=False)
            self._machine, self._call = machine, machine["bound"]
        else:
            self._main, self._call = machine["main"], self._call_main

    def check_extents(self) -> None:
        """Refuse inputs and states that disagree on an open extent, such as the batch.

        Raises
        ------
        DataError
        """
        seen: dict[str, tuple[int, str]] = {}
        for buffer, described in self._open:
            for symbol, extent in zip(described.symbols, buffer.view.shape, strict=True):
                known, name = seen.setdefault(symbol, (extent, described.name))
                if symbol and extent != known:
                    raise DataError(
                        f"input '{described.name}': shape {buffer.view.shape} has {extent} where '{name}' has {known}; "
                        f"accepted: the same '{symbol}' in both"
                    )

    def run(self) -> None:
        """Compute results from the buffers."""
        self._call()

    def _call_main(self) -> None:
        results = self._main(*(buffer.tensor for buffer in self._arguments))
        results = list(results) if hasattr(results, "__len__") else [results]
        self._results = [_Returned(np.from_dlpack(value)) for value in results]

    def outputs(self) -> list[np.ndarray]:
        """Return copies of the outputs."""
        return [buffer.view.copy() for buffer in self._results[: self._outputs]]

    def new_states(self) -> list[np.ndarray]:
        """Return views of the states after the call."""
        return [buffer.view for buffer in self._results[self._outputs : self._outputs + len(self.states)]]

    def extras(self) -> list[np.ndarray]:
        """Return copies of what follows the states: numbers of open rows, or observations."""
        return [buffer.view.copy() for buffer in self._results[self._outputs + len(self.states) :]]


def in_huge_pages(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return copies of the arrays side by side in one region, in huge pages if the system gives them.

    A gate's rows lie all over the weights; with 4 kB pages nearly each of them misses the TLB.
    """
    offsets = np.cumsum([0, *(-(-array.nbytes // _LINE) * _LINE for array in arrays)])
    # Private: shared anonymous memory gets no huge pages.
    region = mmap.mmap(-1, int(offsets[-1]) + 2 * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(region, "uint8")
    memory = memory[-memory.ctypes.data % _HUGE_PAGE :]
    copies = []
    for array, offset in zip(arrays, offsets, strict=False):
        copy = memory[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(copy, array)
        copies.append(copy)
    return copies


class _Returned:
    """A result that ``main`` allocated."""

    def __init__(self, view: np.ndarray) -> None:
        self.view = view
