"""A built library: call it, change its effort, export it. Needs numpy and TVM's runtime alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tvm_dual.container import atomic_write, read_container
from tvm_dual.errors import DataError, LibraryError, PlanError
from tvm_dual.metadata import Metadata, Tensor, checked_metadata
from tvm_dual.report import Report
from tvm_dual.runner import Runner


class DualLibrary:
    """A compiled model.

    Call it with the model's inputs, and for a streaming model its states; or take a `stream`, which
    carries the states itself. One library must not be called from two threads at once.
    """

    def __init__(self, metadata: Metadata, arrays: dict[str, np.ndarray], module, path: Path | None = None) -> None:
        """Wrap a compiled module; use `tvm_dual.build` or `tvm_dual.load` to get one."""
        self.metadata, self._path = metadata, path
        self._tables = [arrays[f"thresholds/{name}"] for name in metadata.thresholds]
        described = [Tensor(n, t.shape[1:]) for n, t in zip(metadata.thresholds, self._tables, strict=True)]
        weights = [arrays[f"weights/{tensor.name}"] for tensor in metadata.weights]
        self._runner = Runner(module, metadata, described, weights)
        self._initial = [arrays[f"initial/{tensor.name}"] for tensor in metadata.states]
        self._streaming: Stream | None = None
        self.effort = 1.0

    @property
    def effort(self) -> float:
        """How much is computed: 0 the little modules alone, 1 the budget of the build, inf everything."""
        return self._effort

    @effort.setter
    def effort(self, value: float) -> None:
        efforts = self.metadata.plan.efforts if self.metadata.plan else (1.0,)
        if value not in efforts:
            raise PlanError(f"effort {value!r} has no thresholds; accepted: {', '.join(map(str, efforts))}")
        self._effort = value
        for buffer, table in zip(self._runner.thresholds, self._tables, strict=True):
            buffer.view[...] = table[efforts.index(value) if len(table) > 1 else 0]

    def set_thresholds(self, tables: dict[str, np.ndarray]) -> None:
        """Replace the thresholds of some sites: one row per effort, or a single row."""
        for i, name in enumerate(self.metadata.thresholds):
            if name in tables:
                self._tables[i] = np.asarray(tables[name], "float32")
        self.effort = self._effort

    @property
    def report(self) -> Report:
        """What was rewritten, why, and what it gains."""
        if self.metadata.plan is None:
            raise PlanError(
                "this library was built as a step of planning and has no report; accepted: build()'s result"
            )
        return Report(self.metadata.plan)

    def __call__(self, *arrays: np.ndarray):
        """Run the model once.

        Parameters
        ----------
        *arrays : ndarray
            Inputs, then states, with the shapes and dtypes of ``metadata``.

        Returns
        -------
        ndarray or tuple of ndarray
            Outputs, then new states.

        Raises
        ------
        DataError
            If a number of arrays, a shape or a dtype is wrong, or extents that must be equal are not.
        """
        expected = (*self.metadata.inputs, *self.metadata.states)
        if len(arrays) != len(expected):
            names = ", ".join(f"{t.name} {t.dtype} {t.shape}" for t in expected)
            raise DataError(f"call: {len(arrays)} arrays; accepted: {len(expected)} ({names})")
        self._give_to(None)
        for array, buffer in zip(arrays, (*self._runner.inputs, *self._runner.states), strict=True):
            buffer.fill(array)
        self._runner.check_extents()
        values = [*self._runner.compute(), *(state.view.copy() for state in self._runner.states)]
        return values[0] if len(values) == 1 else tuple(values)

    def _give_to(self, stream: Stream | None) -> None:
        """Let the runner's state be that of another stream; the one before keeps a copy of its own."""
        if self._streaming is not None:
            self._streaming._states = [buffer.view.copy() for buffer in self._runner.states]
        self._streaming = stream
        if stream is not None:
            for buffer, state in zip(self._runner.states, stream._states, strict=True):
                np.copyto(buffer.view, state)

    def initial_state(self) -> tuple[np.ndarray, ...]:
        """Return the states before the first call: zeros, unless the model starts from constants of its own."""
        return tuple(array.copy() for array in self._initial)

    def stream(self) -> Stream:
        """Return a function of the inputs alone that carries the states from call to call."""
        return Stream(self)

    def last_extras(self) -> list[np.ndarray]:
        """Return what the last call gave besides outputs and states: numbers of open rows, or observations."""
        return [view.copy() for view in self._runner.extras]

    def last_open_rows(self) -> dict[str, int]:
        """Return how many rows of each gated site the last call opened."""
        found: dict[str, int] = {}
        for name, value in zip(self.metadata.counts, self._runner.extras, strict=False):
            found[name] = found.get(name, 0) + int(value[0])
        return found

    def all_rows(self) -> dict[str, int]:
        """Return how many rows each gated site has."""
        found: dict[str, int] = {}
        for name, rows in zip(self.metadata.counts, self.metadata.gated_rows, strict=True):
            found[name] = found.get(name, 0) + rows
        return found

    def export_library(self, path: str | Path) -> Path:
        """Write the library to one file, which `tvm_dual.load` reads.

        Raises
        ------
        LibraryError
            If `path` cannot be written; nothing is left behind then.
        """
        if self._path is None:
            raise LibraryError("this library is a step of planning; accepted: what build() or load() returned")
        atomic_write(Path(path), self._path.read_bytes())
        return Path(path)


def load(path: str | Path) -> DualLibrary:
    """Load a library that ``export_library`` wrote; needs numpy and TVM alone.

    Raises
    ------
    LibraryError
        If the file is no library of this project, is damaged, was built by another version, or for
        a CPU with more features than this one.
    """
    raw, arrays = read_container(path)
    metadata = checked_metadata(raw, Path(path))
    import tvm

    try:
        module = tvm.runtime.load_module(str(path))
        return DualLibrary(metadata, arrays, module, Path(path))
    except (RuntimeError, OSError) as error:
        raise LibraryError(f"'{path}' cannot be loaded: {str(error).splitlines()[-1]}") from error


class Stream:
    """A streaming model and its state."""

    def __init__(self, library: DualLibrary) -> None:
        """Start from the initial state."""
        self._library, self._runner = library, library._runner
        self._states: list[np.ndarray] = []
        self._single_step = self._runner.single_step()
        self.reset()

    def reset(self) -> None:
        """Return to the initial state."""
        if self._library._streaming is self:
            self._library._streaming = None
        self._states = list(self._library.initial_state())

    def __call__(self, *arrays: np.ndarray):
        """Run one step.

        Parameters
        ----------
        *arrays : ndarray
            The inputs, in the dtypes of ``metadata``; axes of length one may be left out.

        Returns
        -------
        ndarray or tuple of ndarray
            The outputs, in the shape of ``metadata``.

        Raises
        ------
        DataError
            If a number of arrays, a shape or a dtype is wrong.
        """
        if self._library._streaming is not self:
            self._library._give_to(self)
        if self._single_step is not None and len(arrays) == 1:
            return self._single_step(arrays[0])
        runner = self._runner
        if len(arrays) != len(runner.inputs):
            raise DataError(f"call: {len(arrays)} arrays; accepted: {len(runner.inputs)}, without the states")
        for array, buffer in zip(arrays, runner.inputs, strict=True):
            buffer.fill(array, squeeze=True)
        runner.check_extents()
        values = runner.compute()
        return values[0] if len(values) == 1 else tuple(values)
