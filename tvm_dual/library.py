"""A built library: call it, change its effort, export it. Needs numpy and TVM's runtime alone."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from schedules.cpu import ISAS, aligned_empty, cpu_name, missing_flags
from tvm_dual.container import atomic_write, read_container
from tvm_dual.errors import DataError, LibraryError, PlanError
from tvm_dual.plan import Plan, from_dict
from tvm_dual.report import Report
from tvm_dual.versions import FFI_VERSION, TVM_VERSION, VERSION

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Tensor:
    """Name and shape of a float32 input or output."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Metadata:
    """What a library file says of itself.

    Attributes
    ----------
    inputs, states, outputs : tuple of Tensor
        Inputs and outputs without states; states are both.
    thresholds : tuple of str
        Sites whose thresholds ``main`` takes, in order.
    counts : tuple of str
        Sites of the numbers of open rows that ``main`` gives, in order.
    gated_rows : tuple of int
        All rows of each of `counts`.
    observed : tuple of str
        Further outputs of a library built to observe; empty otherwise.
    isa : str
        Instruction set level.
    threads : int
    versions : dict
        Of tvm_dual, TVM and its ffi at build time.
    plan : Plan or None
        None for a library that is a step of planning.
    """

    inputs: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    thresholds: tuple[str, ...]
    counts: tuple[str, ...]
    gated_rows: tuple[int, ...]
    observed: tuple[str, ...]
    isa: str
    threads: int
    versions: dict
    plan: Plan | None
    format: int = FORMAT_VERSION

    def to_dict(self) -> dict:
        """Return what JSON can hold."""
        return asdict(self)


def current_versions() -> dict[str, str]:
    """Return the versions that a library built now carries."""
    return {"tvm_dual": VERSION, "apache-tvm": TVM_VERSION, "apache-tvm-ffi": FFI_VERSION}


class DualLibrary:
    """A compiled model.

    Call it with the model's inputs, and for a streaming model its states; or take a `stream`, which
    carries the states itself. One library must not be called from two threads at once.
    """

    def __init__(self, metadata: Metadata, arrays: dict[str, np.ndarray], main, path: Path | None = None) -> None:
        """Wrap a compiled ``main``; use `tvm_dual.build` or `tvm_dual.load` to get one."""
        self.metadata = metadata
        self._main, self._path = main, path
        self._tables = [arrays[f"thresholds/{name}"] for name in metadata.thresholds]
        self._buffers = [_Buffer(t.shape) for t in (*metadata.inputs, *metadata.states)]
        self._thresholds = [_Buffer(table.shape[1:]) for table in self._tables]
        self._extras: list = []
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
        for buffer, table in zip(self._thresholds, self._tables, strict=True):
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
            raise PlanError("this library was built as a step of planning and has no report; accepted: build()'s result")
        return Report(self.metadata.plan)

    def __call__(self, *arrays: np.ndarray):
        """Run the model once.

        Parameters
        ----------
        *arrays : ndarray, float32
            Inputs, then states, with the shapes of ``metadata``.

        Returns
        -------
        ndarray or tuple of ndarray
            Outputs, then new states.

        Raises
        ------
        DataError
            If a number of arrays, a shape or a dtype is wrong.
        """
        expected = (*self.metadata.inputs, *self.metadata.states)
        if len(arrays) != len(expected):
            names = ", ".join(f"{t.name} {t.shape}" for t in expected)
            raise DataError(f"call: {len(arrays)} arrays; accepted: {len(expected)} ({names}), each float32")
        for array, tensor, buffer in zip(arrays, expected, self._buffers, strict=True):
            buffer.fill(array, tensor)
        results = self._invoke([b.tensor for b in self._buffers])
        values = [_array(value) for value in results]
        return values[0] if len(values) == 1 else tuple(values)

    def _invoke(self, tensors: list):
        """Run on TVM tensors; return outputs and states, and keep what follows them."""
        results = self._main(*tensors, *(b.tensor for b in self._thresholds))
        kept = len(self.metadata.outputs) + len(self.metadata.states)
        if kept == 1 and not hasattr(results, "__len__"):
            return [results]
        results = list(results)
        self._extras = results[kept:]
        return results[:kept]

    def initial_state(self) -> tuple[np.ndarray, ...]:
        """Return the states before the first call: zeros."""
        return tuple(np.zeros(t.shape, "float32") for t in self.metadata.states)

    def stream(self) -> Stream:
        """Return a function of the inputs alone that carries the states from call to call."""
        return Stream(self)

    def last_extras(self) -> list[np.ndarray]:
        """Return what the last call gave besides outputs and states: numbers of open rows, or observations."""
        return [_array(value) for value in self._extras]

    def last_open_rows(self) -> dict[str, int]:
        """Return how many rows of each gated site the last call opened."""
        found: dict[str, int] = {}
        for name, value in zip(self.metadata.counts, self._extras, strict=False):
            found[name] = found.get(name, 0) + int(_array(value)[0])
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
    metadata = _checked_metadata(raw, Path(path))
    import tvm

    try:
        module = tvm.runtime.load_module(str(path))
        return DualLibrary(metadata, arrays, start(module, metadata.threads), Path(path))
    except (RuntimeError, OSError) as error:
        raise LibraryError(f"'{path}' cannot be loaded: {str(error).splitlines()[-1]}") from error


def start(module, threads: int):
    """Return the ``main`` of a compiled module, ready to run on `threads` threads."""
    # The variable is read when the pool starts: binding would put two processes on the same cores.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    import tvm
    from tvm.runtime.vm import VirtualMachine

    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    return VirtualMachine(module, tvm.cpu())["main"]


def describe(raw: dict) -> str:
    """Return what a library's metadata says, for people."""
    metadata = from_dict(Metadata, raw)
    lines = [f"{key} {value}" for key, value in metadata.versions.items()]
    lines.append(f"built for {metadata.isa} ({', '.join(ISAS[metadata.isa].requires)}), {metadata.threads} thread(s)")
    for label in ("inputs", "states", "outputs"):
        lines += [f"{label[:-1]} {tensor.name}: float32 {tensor.shape}" for tensor in getattr(metadata, label)]
    return "\n".join([*lines, "", str(Report(metadata.plan)) if metadata.plan else "no plan"])


class Stream:
    """A streaming model and its state."""

    def __init__(self, library: DualLibrary) -> None:
        """Start from the zero state."""
        self._library = library
        self._buffers = [_Buffer(tensor.shape) for tensor in library.metadata.inputs]
        self.reset()

    def reset(self) -> None:
        """Return to the zero state."""
        self._states = [_Buffer(tensor.shape, zero=True).tensor for tensor in self._library.metadata.states]

    def __call__(self, *arrays: np.ndarray):
        """Run one step.

        Parameters
        ----------
        *arrays : ndarray, float32
            The inputs; axes of length one may be left out.

        Returns
        -------
        ndarray or tuple of ndarray
            The outputs, in the shape of ``metadata``.
        """
        tensors = self._library.metadata.inputs
        if len(arrays) != len(tensors):
            raise DataError(f"call: {len(arrays)} arrays; accepted: {len(tensors)}, without the states")
        for array, tensor, buffer in zip(arrays, tensors, self._buffers, strict=True):
            buffer.fill(array, tensor, squeeze=True)
        results = self._library._invoke([*(b.tensor for b in self._buffers), *self._states])
        count = len(self._library.metadata.outputs)
        self._states = results[count:]
        values = [_array(value) for value in results[:count]]
        return values[0] if count == 1 else tuple(values)


class _Buffer:
    """A TVM tensor and a numpy view of its memory, aligned as the kernels' vector loads want it."""

    def __init__(self, shape: tuple[int, ...], zero: bool = False) -> None:
        # An open extent is allocated when an array arrives.
        self._allocate(tuple(max(extent, 0) for extent in shape))
        if zero:
            self.view[...] = 0

    def _allocate(self, shape: tuple[int, ...]) -> None:
        import tvm

        self.view = aligned_empty(shape, "float32")
        self.tensor = tvm.runtime.from_dlpack(self.view)

    def fill(self, array, tensor: Tensor, squeeze: bool = False) -> None:
        """Copy an array in, if it is what `tensor` says."""
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            found = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise DataError(f"input '{tensor.name}': {found}; accepted: a numpy array, float32 {tensor.shape}")
        if array.shape != self.view.shape:
            array = self._fitted(array, tensor, squeeze)
        np.copyto(self.view, array)

    def _fitted(self, array: np.ndarray, tensor: Tensor, squeeze: bool) -> np.ndarray:
        """Return `array` in the tensor's shape, with the buffer's open extents set to it."""
        plain = tuple(extent for extent in array.shape if extent != 1)
        if squeeze and plain == tuple(extent for extent in tensor.shape if extent != 1):
            return array.reshape(tensor.shape)
        same = len(array.shape) == len(tensor.shape) and array.size > 0
        if not same or any(want not in (-1, have) for want, have in zip(tensor.shape, array.shape, strict=True)):
            raise DataError(f"input '{tensor.name}': shape {array.shape}; accepted: float32 {tensor.shape}, -1 is any")
        self._allocate(array.shape)
        return array


def _array(value) -> np.ndarray:
    return np.from_dlpack(value).copy()


def _checked_metadata(raw: dict, path: Path) -> Metadata:
    versions, now = raw.get("versions"), current_versions()
    if raw.get("format") != FORMAT_VERSION or versions != now:
        found = f"file format {raw.get('format')}, {versions}"
        raise LibraryError(f"'{path}' was built by another version: {found}; accepted: {now}. Build it anew with this one")
    metadata = from_dict(Metadata, raw)
    isa = ISAS.get(metadata.isa)
    missing = missing_flags(isa) if isa else [metadata.isa]
    if missing:
        raise LibraryError(
            f"'{path}' was built for {metadata.isa}; this CPU ({cpu_name()}) lacks {', '.join(missing)}. "
            "Build the model with target='avx2', or on a CPU like this one"
        )
    return metadata
