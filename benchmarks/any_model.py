"""``bench MODEL.onnx``: a model of the user's, call by call, ours in every form beside the strongest peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import EngineSpec, Harness
from benchmarks.ours import our_spec
from benchmarks.peers import peer_specs
from benchmarks.tables import print_result
from tvm_dual.builder import Builder
from tvm_dual.calibration_file import read_calibration
from tvm_dual.errors import DataError
from tvm_dual.library import DualLibrary
from tvm_dual.options import AdvancedOptions

NAME = "any-model"
FILES = ("model", "calibration")
Progress = Callable[[str, int, int], None]
#: Our forms beside the duals: mode and precision.
FORMS = (("dense", "fp32"), ("dense", "int8"), ("skip", "fp32"), ("skip", "int8"), ("little", "int8"))
#: One in so many streams, or calls of a single stream, is kept from calibration for the quality of the rows.
KEPT = 5


@dataclass(frozen=True)
class Size:
    """Turns of each engine, and timed calls per turn."""

    rounds: int
    steps: int


FULL, SHORT = Size(10, 200), Size(2, 60)


@dataclass(frozen=True, eq=False)
class Result:
    """Rows of DESIGN's JSON form, and the dual library."""

    rows: list[dict]
    library: DualLibrary


def run(threads: int, size: Size, progress: Progress, model: Path, calibration: Path | None = None) -> Result:
    """Build all forms, measure them with the peers, and compare their outputs with the dense model's.

    Parameters
    ----------
    threads : int
    size : Size
    progress : callable
        Called with ``(phase, done, total)``.
    model : Path
        An ONNX model of one float32 input, a vector per call; recurrent states are carried.
    calibration : Path
        See `tvm_dual.calibration_file.read_calibration`.

    Raises
    ------
    TvmDualError
        If the model or the data cannot be read, or the model has several inputs.
    """
    if calibration is None:
        raise DataError("--calibration: not given; accepted: a .npz file of inputs, one array per stream")
    seen, unseen = split(read_calibration(calibration))
    builder = Builder(model, seen, streaming=True, threads=threads, progress=progress)
    libraries = {("dual", precision): builder.build(precision) for precision in ("int8", "fp32")}
    for mode, precision in FORMS:
        libraries[mode, precision] = builder.build(precision, options=AdvancedOptions(mode=mode))
    with tempfile.TemporaryDirectory(prefix="any-model-") as folder:
        specs = [
            our_spec(library, Path(folder) / f"{mode}_{precision}.so", mode)
            for (mode, precision), library in libraries.items()
        ]
        specs += peer_specs(str(model), threads)
        rows = measure(specs, threads, size, unseen, progress)
    return Result(rows, libraries["dual", "int8"])


def show(result: Result, path: Path) -> None:
    """Print the result, whose rows are in the file `path`."""
    print_result(result.rows, result.library)


def split(streams: list) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return streams ``(calls, features)`` to calibrate on, and others to measure on.

    Raises
    ------
    DataError
        If the streams are those of several inputs, or too few calls to keep some.
    """
    if any(isinstance(stream, dict) for stream in streams):
        raise DataError("calibration: streams of several inputs; accepted: those of a model with one input")
    streams = [stream.reshape(len(stream), -1) for stream in streams]
    if len(streams) == 1:
        (stream,) = streams
        streams = np.array_split(stream, KEPT) if len(stream) >= KEPT else []
    if len(streams) < 2:
        raise DataError(f"calibration: too little to keep a part of; accepted: two streams, or one of {KEPT} calls")
    kept = max(1, len(streams) // KEPT)
    return streams[:-kept], streams[-kept:]


def measure(specs: list[EngineSpec], threads: int, size: Size, streams, progress: Progress) -> list[dict]:
    """Return the engines' rows: times over `streams`, in turns, and agreement with our dense fp32 form."""
    clips = {str(i): stream for i, stream in enumerate(streams)}
    with Harness(specs, threads, progress=progress) as harness:
        harness.measure(np.concatenate(streams), size.rounds, size.steps)
        outputs = harness.outputs(clips)
        rows = harness.rows()
    places = [(spec.engine, spec.mode, spec.precision) for spec in specs]
    wanted = _joined(outputs[places.index(("tvm_dual", "dense", "fp32"))])
    power = float(np.square(wanted - wanted.mean(axis=0)).mean()) or 1.0
    for row, found in zip(rows, outputs, strict=True):
        if found is not None:
            error = float(np.square(_joined(found) - wanted).mean())
            row["quality"] = {"agreement": 1 - (error / power) ** 0.5}
    return rows


def _joined(outputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([values.reshape(len(values), -1) for values in outputs.values()])
