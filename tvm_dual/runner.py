"""The call itself: numpy arrays in fixed, aligned memory that a compiled ``main`` reads and writes.

A frame takes tens of microseconds, so what surrounds the kernel counts: where ``main`` is a single
kernel, all its memory is one region made once, and a call passes nothing but that. Large inputs are
read and large outputs written where the caller has them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from schedules.cpu import use_threads
from tvm_dual.buffers import Buffer, Recycled, huge_pages
from tvm_dual.errors import DataError

if TYPE_CHECKING:
    from tvm_dual.metadata import Metadata, Tensor


class Runner:
    """Runs ``main`` on its buffers.

    Attributes
    ----------
    inputs, states, thresholds : list of Buffer
    run : callable
        Computes outputs and extras, and replaces the states.
    extras : list of ndarray
        Results of the last run, which the next one may overwrite: numbers of open rows, or observations.
    """

    def __init__(self, module, metadata: Metadata, thresholds: list[Tensor], weights: list[np.ndarray]) -> None:
        """Load `module` on the CPU; TVM's thread pool gets as many threads as the library was built for."""
        use_threads(metadata.threads)
        import tvm
        from tvm.runtime.vm import VirtualMachine

        described = [*metadata.inputs, *metadata.states, *thresholds]
        results = [*metadata.outputs, *metadata.states, *metadata.extras]
        self._fixed, self._afar = bool(metadata.offsets), bool(metadata.afar)
        if self._fixed:
            self._region = huge_pages(metadata.offsets[-1])
            tensors = [*described, *metadata.weights, *results]
            views = [self._view(t, start) for t, start in zip(tensors, metadata.offsets[:-1], strict=True)]
            distances = self._region[: 8 * len(metadata.afar)].view("int64")
            afar = {position: distances[i : i + 1] for i, position in enumerate(metadata.afar)}
            given = enumerate(zip(described, views, strict=False))
            arguments = [Buffer(tensor, view, afar.get(i)) for i, (tensor, view) in given]
            for view, weight in zip(views[len(described) :], weights, strict=False):
                view[...] = weight
            first = len(described) + len(weights)
            self._sort(views[first:], metadata)
            self._outputs = [
                Recycled(view, afar[i]) if i in afar else view for i, view in enumerate(self._outputs, first)
            ]
            # The kernel itself: the virtual machine takes microseconds to get there.
            module = module if isinstance(module, tvm.runtime.Module) else module.jit()
            self.run = partial(module.get_function("step", query_imports=True), tvm.runtime.from_dlpack(self._region))
        else:
            arguments = [Buffer(tensor) for tensor in described]
            self.run = partial(self._run_main, VirtualMachine(module, tvm.cpu())["main"], arguments, metadata)
        inputs, states = len(metadata.inputs), len(metadata.inputs) + len(metadata.states)
        self.inputs, self.states, self.thresholds = arguments[:inputs], arguments[inputs:states], arguments[states:]
        given = zip((*self.inputs, *self.states), (*metadata.inputs, *metadata.states), strict=True)
        self._open = [(buffer, tensor) for buffer, tensor in given if any(tensor.symbols)]

    def _view(self, tensor: Tensor, start: int) -> np.ndarray:
        size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
        return self._region[start : start + size].view(tensor.dtype).reshape(tensor.shape)

    def compute(self) -> list[np.ndarray]:
        """Run, and return the outputs in memory that is the caller's."""
        if not self._fixed:
            self.run()
            return [output.copy() for output in self._outputs]
        taken = [output.next() if isinstance(output, Recycled) else None for output in self._outputs]
        self.run()
        return [kept.copy() if view is None else view for kept, view in zip(self._outputs, taken, strict=True)]

    def single_step(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Return the call from one input to one output as a function of its own, or None if it needs more.

        The kernel sweeps the interpreter out of the caches, so each line around it costs: for a step of 70
        microseconds this is 5 less than the general way.
        """
        small = self._fixed and not self._afar
        if not small or len(self.inputs) != 1 or len(self._outputs) != 1 or self.inputs[0].below is not None:
            return None
        buffer, run, (output,) = self.inputs[0], self.run, self._outputs
        dtype, places, array_type = buffer.dtype, buffer.places, np.ndarray

        def step(array: np.ndarray) -> np.ndarray:
            if type(array) is array_type and array.dtype is dtype and (place := places.get(array.shape)) is not None:
                place[...] = array
            else:
                buffer.fill(array, squeeze=True)
            run()
            return output.copy()

        return step

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

    def _sort(self, results: list[np.ndarray], metadata: Metadata) -> list[np.ndarray]:
        """Keep outputs and extras; return the states between them."""
        outputs, states = len(metadata.outputs), len(metadata.outputs) + len(metadata.states)
        self._outputs, self.extras = results[:outputs], results[states:]
        return results[outputs:states]

    def _run_main(self, main, arguments: list[Buffer], metadata: Metadata) -> None:
        from tvm.runtime import from_dlpack

        try:
            results = main(*(from_dlpack(buffer.view) for buffer in arguments))
        except (RuntimeError, ValueError) as error:
            # Open extents of other names may have to be equal, too: compiled code finds out.
            shapes = ", ".join(f"{b.view.shape} of '{t.name}'" for b, t in self._open)
            reason = str(error).splitlines()[0]
            raise DataError(f"call: shapes {shapes}: {reason}; accepted: extents that fit each other") from error
        results = list(results) if hasattr(results, "__len__") else [results]
        states = self._sort([np.from_dlpack(value) for value in results], metadata)
        for buffer, state in zip(self.states, states, strict=True):
            buffer.view[...] = state
