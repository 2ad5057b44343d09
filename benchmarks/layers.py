"""The suite layers: single convolutions of ResNet and VGG, dense beside the peers, then by zeros and by closed units.

Images lie channels last, as our kernels take them, and as oneDNN does through PyTorch in that layout.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import EngineSpec, Harness
from benchmarks.image_suite import Progress, Turns
from benchmarks.levels import our_bf16, our_target
from benchmarks.ours import our_spec
from benchmarks.peers.images import image_peer_specs, quantized_peer_specs
from benchmarks.tables import fastest
from tvm_dual.builder import Builder
from tvm_dual.options import AdvancedOptions

NAME = "layers"
#: Options of the command that name what the suite reads.
FILES = ()
#: Calls that are timed in turn, and that little modules are fitted to.
CALLS = 4
#: Directions of little modules, as a share of a layer's channels.
SHARE = 0.125


@dataclass(frozen=True)
class Layer:
    """A convolution and a ReLU."""

    size: int
    inputs: int
    outputs: int
    kernel: int
    stride: int

    def __str__(self) -> str:
        """Return what tables call it."""
        name = f"{self.size}x{self.size} {self.inputs}->{self.outputs} {self.kernel}x{self.kernel}"
        return f"{name}/{self.stride}" if self.stride > 1 else name


LAYERS = (
    Layer(56, 64, 64, 3, 1),
    Layer(28, 128, 128, 3, 1),
    Layer(14, 256, 256, 3, 1),
    Layer(7, 512, 512, 3, 1),
    Layer(56, 64, 128, 3, 2),
    Layer(28, 256, 512, 1, 1),
    Layer(14, 1024, 256, 1, 1),
)


@dataclass(frozen=True)
class Size:
    """How much of everything: layers, shares of zero inputs, closed tiles and outputs, and how often each is timed."""

    turns: Turns
    layers: tuple[Layer, ...]
    zeros: tuple[float, ...]
    closed: tuple[float, ...]
    closed_outputs: tuple[float, ...]


FULL = Size(
    Turns(10, 30),
    LAYERS,
    zeros=(0.5, 0.75, 0.9, 0.95),
    closed=(0.5, 0.67, 0.8, 0.9),
    closed_outputs=(0.7, 0.8, 0.9, 0.95),
)
SHORT = Size(Turns(5, 20), LAYERS, zeros=(0.75, 0.9), closed=(0.5, 0.8), closed_outputs=(0.8, 0.9))


@dataclass(frozen=True, eq=False)
class Result:
    """Rows, each with its ``layer``; those of sweeps also with ``zeros``, or ``closed`` and the gate's ``unit``."""

    rows: list[dict]


def run(threads: int, size: Size, progress: Progress) -> Result:
    """Measure every layer.

    Parameters
    ----------
    threads : int
    size : Size
    progress : callable
        Called with ``(phase, done, total)``.
    """
    rows = []
    for layer in size.layers:
        with tempfile.TemporaryDirectory(prefix="layers-") as folder:
            rows += _measured(layer, Path(folder), threads, size, progress)
    return Result(rows)


def show(result: Result, path: Path) -> None:
    """Print one line per layer: how many times faster than the fastest peer, whose time is that of a dense layer."""
    for layer in dict.fromkeys(row["layer"] for row in result.rows):
        rows = [row for row in result.rows if row["layer"] == layer]
        peer = fastest(rows, ("fp32",), False)
        parts = []
        for row in rows:
            if row["engine"] == "tvm_dual" and row.get("median_ms"):
                what = next((f"{key} {row[key]:.2f}" for key in ("zeros", "closed") if key in row), "dense")
                what += f" {row['unit']}s" if "unit" in row else ""
                ratio = peer["median_ms"] / row["median_ms"] if peer else math.nan
                parts.append(f"{row['precision']} {what}: {ratio:.2f}")
        print(f"{layer}: {peer['engine'] if peer else 'no peer'} / ours, {', '.join(parts)}")
    for engine in ("openvino", "onnxruntime"):
        ratios = [ratio for ratio in _int8_ratios(result.rows, engine) if not math.isnan(ratio)]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
        listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"int8, {engine} / ours dense: geometric mean {mean:.2f} ({listed})")


def _int8_ratios(rows: list[dict], engine: str) -> list[float]:
    """Return for each layer how many times slower an engine's int8 is than ours."""
    found = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        times = {row["engine"]: row.get("median_ms") for row in rows if row["layer"] == layer and _is_int8(row)}
        ours, other = times.get("tvm_dual"), times.get(engine)
        found.append(other / ours if ours and other else math.nan)
    return found


def _is_int8(row: dict) -> bool:
    return row["precision"] == "int8" and row["mode"] == "dense"


def _measured(layer: Layer, folder: Path, threads: int, size: Size, progress: Progress) -> list[dict]:
    rng = np.random.default_rng(0)
    images = np.abs(rng.standard_normal((CALLS, layer.size, layer.size, layer.inputs))).astype("float32")
    plain, rectified = folder / "plain.onnx", folder / "rectified.onnx"
    onnx.save(layer_model(layer, rectified=False), plain)
    # Zeros are skipped where the graph shows that nothing is negative.
    onnx.save(layer_model(layer, rectified=True), rectified)
    dense = AdvancedOptions(mode="dense")
    shares = [("tile", share) for share in size.closed] + [("output", share) for share in size.closed_outputs]
    gated = [
        AdvancedOptions(rule="damage", dimension_share=SHARE, closed_share=share, gate_unit=unit)
        for unit, share in shares
    ]
    specs = [_ours(plain, images, options, folder, threads, progress) for options in (dense, *gated)]
    low = ["int8", "bf16"] if our_bf16() else ["int8"]
    # Of bytes and of bf16 there are gates of tiles alone.
    options = (dense, *gated[: len(size.closed)])
    specs += [_ours(plain, images, each, folder, threads, progress, p) for p in low for each in options]
    low_sweeps = [{}, *({"closed": share, "unit": "tile"} for share in size.closed)] * len(low)
    specs += image_peer_specs(str(plain), threads)
    specs += quantized_peer_specs(str(plain), images, folder, threads)
    sweeps = [{}, *({"closed": share, "unit": unit} for unit, share in shares), *low_sweeps]
    rows = _rows(layer, images, specs, sweeps, threads, size, progress)
    for share in size.zeros:
        some = images * (rng.random(images.shape) >= share).astype("float32")
        spec = _ours(rectified, some, AdvancedOptions(mode="skip"), folder, threads, progress)
        rows += _rows(layer, some, [spec], [{"zeros": share}], threads, size, progress)
    return rows


def _ours(path: Path, images, options, folder: Path, threads: int, progress: Progress, precision="fp32") -> EngineSpec:
    builder = Builder(path, [images], threads=threads, progress=progress, target=our_target())
    library = builder.build(precision, options=options)
    return our_spec(library, folder / f"{len(list(folder.iterdir()))}.so", options.mode)


def _rows(layer: Layer, images, specs, sweeps: list[dict], threads: int, size: Size, progress: Progress) -> list[dict]:
    with Harness(specs, threads, progress=progress) as harness:
        harness.measure(images, rounds=size.turns.rounds, steps=size.turns.steps, warmup=2)
        rows = harness.rows()
    sweeps = [*sweeps, *({} for _ in rows[len(sweeps) :])]
    return [{"layer": str(layer), **sweep, **row} for sweep, row in zip(sweeps, rows, strict=True)]


def layer_model(layer: Layer, *, rectified: bool) -> onnx.ModelProto:
    """Return one layer with random weights; `rectified`, behind a ReLU."""
    rng = np.random.default_rng(1)
    shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
    weights = {
        "w": rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])),
        "b": 0.1 * rng.standard_normal(layer.outputs),
    }
    pads, strides = [layer.kernel // 2] * 4, [layer.stride] * 2
    source = "r" if rectified else "i"
    nodes = [helper.make_node("Transpose", ["x"], ["i"], perm=[0, 3, 1, 2])]
    nodes += [helper.make_node("Relu", ["i"], ["r"])] * rectified
    attributes = {"kernel_shape": list(shape[2:]), "pads": pads, "strides": strides, "dilations": [1, 1], "group": 1}
    nodes += [
        helper.make_node("Conv", [source, "w", "b"], ["c"], **attributes),
        helper.make_node("Relu", ["c"], ["o"]),
        helper.make_node("Transpose", ["o"], ["y"], perm=[0, 2, 3, 1]),
    ]
    out = (layer.size + 2 * pads[0] - layer.kernel) // layer.stride + 1
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, layer.size, layer.size, layer.inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, out, out, layer.outputs])],
        [numpy_helper.from_array(value.astype("float32"), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
