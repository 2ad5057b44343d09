"""``bench MODEL.onnx``: a model of the user's, call by call, ours in every form beside the strongest peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.harness import EngineSpec, Harness
from benchmarks.ours import our_spec
from benchmarks.peers import peer_specs
from benchmarks.peers.images import image_peer_specs, quantized_peer_specs
from benchmarks.tables import print_result
from tvm_dual.builder import Builder
from tvm_dual.calibration_file import read_calibration
from tvm_dual.errors import DataError
from tvm_dual.frontend.extents import with_fixed_images
from tvm_dual.frontend.onnx import load_onnx
from tvm_dual.library import DualLibrary
from tvm_dual.options import AdvancedOptions

NAME = "any-model"
FILES = ("model", "calibration")
Progress = Callable[[str, int, int], None]
#: Our forms beside the duals: mode and precision.
FORMS = (("dense", "fp32"), ("dense", "int8"), ("skip", "fp32"), ("skip", "int8"), ("little", "int8"))
#: One in so many streams, or calls of a single stream, is kept from calibration for the quality of the rows.
KEPT = 5
#: Timed calls of a turn, at least, and milliseconds that one takes at most beyond those.
FEWEST, TURN_MS = 5, 1000.0


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
        An ONNX model of one float32 input: a vector per call, recurrent states being carried, or an image or signal of
        the size that the data has.
    calibration : Path
        See `tvm_dual.calibration_file.read_calibration`.

    Raises
    ------
    TvmDualError
        If the model or the data cannot be read, or the model has several inputs.
    """
    if calibration is None:
        raise DataError("--calibration: not given; accepted: a .npz file of inputs, one array per stream")
    streams = one_input(read_calibration(calibration))
    images = max(map(_axes, streams)) > 1
    if not images:
        streams = [stream.reshape(len(stream), -1) for stream in streams]
    seen, unseen = split(streams)
    builder = Builder(model, seen, streaming=True, threads=threads, progress=progress)
    libraries = {("dual", precision): builder.build(precision) for precision in ("int8", "fp32")}
    for mode, precision in FORMS:
        libraries[mode, precision] = builder.build(precision, options=AdvancedOptions(mode=mode))
    with tempfile.TemporaryDirectory(prefix="any-model-") as folder:
        specs = [
            our_spec(library, Path(folder) / f"{mode}_{precision}.so", mode)
            for (mode, precision), library in libraries.items()
        ]
        if images:
            shape = builder.inputs[0].shape
            seen, unseen = ([stream.reshape(len(stream), *shape[1:]) for stream in part] for part in (seen, unseen))
            specs += _image_peers(model, np.concatenate(seen), Path(folder), threads)
        else:
            specs += peer_specs(str(model), threads)
        rows = measure(specs, threads, size, unseen, progress)
    return Result(rows, libraries["dual", "int8"])


def _image_peers(model: Path, images: np.ndarray, folder: Path, threads: int) -> list[EngineSpec]:
    """Return the peers of a model without states, for images ``(calls, *shape of one)``."""
    path = folder / "fixed.onnx"
    onnx.save(with_fixed_images(load_onnx(model), [images[:, None]]), path)
    return [*image_peer_specs(str(path), threads), *quantized_peer_specs(str(path), images, folder, threads)]


def _axes(stream: np.ndarray) -> int:
    """Return how many axes of a call are more than one value."""
    return sum(extent > 1 for extent in stream.shape[1:])


def show(result: Result, path: Path) -> None:
    """Print the result, whose rows are in the file `path`."""
    print_result(result.rows, result.library)


def one_input(streams: list) -> list[np.ndarray]:
    """Return the streams, of a model with one input.

    Raises
    ------
    DataError
        If they are of several inputs.
    """
    if any(isinstance(stream, dict) for stream in streams):
        raise DataError("calibration: streams of several inputs; accepted: those of a model with one input")
    return streams


def split(streams: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return streams to calibrate on, and others to measure on.

    Raises
    ------
    DataError
        If they are too few calls to keep some.
    """
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
    frames = np.concatenate(streams)
    with Harness(specs, threads, progress=progress) as harness:
        steps = turn_steps(harness, frames, size.steps)
        harness.measure(frames, size.rounds, steps, warmup=min(20, steps))
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


def turn_steps(harness: Harness, frames: np.ndarray, most: int) -> int:
    """Return how many calls a turn has, `most` at most, so that the slowest engine takes a second or so."""
    harness.measure(frames, 1, 1, 1)
    slowest = max((row["median_ms"] for row in harness.rows() if "median_ms" in row), default=0.0)
    return max(FEWEST, min(most, int(TURN_MS / max(slowest, 1e-3))))


def _joined(outputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([values.reshape(len(values), -1) for values in outputs.values()])
