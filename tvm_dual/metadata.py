"""What a library file says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from schedules.cpu import ISAS, cpu_name, missing_flags
from tvm_dual.dataclass_values import from_dict
from tvm_dual.errors import LibraryError
from tvm_dual.plan import Plan
from tvm_dual.report import Report
from tvm_dual.versions import FFI_VERSION, TVM_VERSION, VERSION

#: Raise it with every change of what a file holds: 2 lays all memory of a fused step out in one region, 3 leaves
#: large inputs and outputs outside of it.
FORMAT_VERSION = 3


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes
    ----------
    name : str
    shape : tuple of int
        -1 is an extent that calls may choose.
    dtype : str
    symbols : tuple of str
        By axis, the name of an open extent, which is the same wherever a call meets the name; "" for others. Empty
        if none is open.
    below : int or None
        What an integer input's values must be smaller than: the rows of the table that they select from.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    symbols: tuple[str, ...] = ()
    below: int | None = None


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
    extras : tuple of Tensor
        All outputs behind the states: numbers of open rows, or observations.
    offsets : tuple of int
        Where inputs, states, thresholds, weights, outputs, states again and extras start in the one
        region of memory that ``main`` is given, in bytes, and its size; empty if ``main`` takes tensors.
    afar : tuple of int
        Inputs and outputs, as positions in `offsets`, that may lie outside of that region; see
        `relay_passes.one_memory.in_one_memory`.
    weights : tuple of Tensor
        What that region holds from the start.
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
    extras: tuple[Tensor, ...]
    offsets: tuple[int, ...]
    afar: tuple[int, ...]
    weights: tuple[Tensor, ...]
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


def describe(raw: dict, path: Path) -> str:
    """Return what the metadata of the library `path` says, for people.

    Raises
    ------
    LibraryError
        If it has another format.
    """
    if raw.get("format") != FORMAT_VERSION:
        raise LibraryError(
            f"'{path}' has the file format {raw.get('format')}; accepted: {FORMAT_VERSION}. "
            "Inspect it with the version that built it"
        )
    metadata = from_dict(Metadata, raw)
    lines = [f"{key} {value}" for key, value in metadata.versions.items()]
    lines.append(f"built for {metadata.isa} ({', '.join(ISAS[metadata.isa].requires)}), {metadata.threads} thread(s)")
    for label in ("inputs", "states", "outputs"):
        lines += [f"{label[:-1]} {tensor.name}: {tensor.dtype} {tensor.shape}" for tensor in getattr(metadata, label)]
    return "\n".join([*lines, "", str(Report(metadata.plan)) if metadata.plan else "no plan"])


def checked_metadata(raw: dict, path: Path) -> Metadata:
    """Return the metadata of a file, if this version and this CPU can run it.

    Raises
    ------
    LibraryError
        If not, naming what differs.
    """
    versions, now = raw.get("versions"), current_versions()
    if raw.get("format") != FORMAT_VERSION or versions != now:
        found = f"file format {raw.get('format')}, {versions}"
        raise LibraryError(
            f"'{path}' was built by another version: {found}; accepted: {now}. Build it anew with this one"
        )
    metadata = from_dict(Metadata, raw)
    isa = ISAS.get(metadata.isa)
    missing = missing_flags(isa) if isa else [metadata.isa]
    if missing:
        raise LibraryError(
            f"'{path}' was built for {metadata.isa}; this CPU ({cpu_name()}) lacks {', '.join(missing)}. "
            "Build the model with target='avx2', or on a CPU like this one"
        )
    return metadata
