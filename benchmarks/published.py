"""``python -m benchmarks.published``: published networks as they come in packages, every layer exact, beside the peers.

They are what users have: detectors and readers of text and of boxes, networks that score speech or find notes in it.
Nothing of ours was made for any of them. Each is given as its package has it; what it leaves open is fixed by the data.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.any_model import turn_steps
from benchmarks.harness import Harness
from benchmarks.ours import our_spec
from benchmarks.packages import package_file
from benchmarks.pages import pages
from benchmarks.peers.images import image_peer_specs
from benchmarks.results import write_json
from benchmarks.tables import fastest, print_rows
from tvm_dual.builder import Builder
from tvm_dual.console import progress_bars
from tvm_dual.errors import PlanError, TvmDualError
from tvm_dual.frontend.extents import with_fixed_images
from tvm_dual.frontend.onnx import load_onnx
from tvm_dual.options import AdvancedOptions

#: Calls to calibrate on and to measure with, rounds, and most timed calls of a round.
CALLS, ROUNDS, STEPS = 4, 10, 100


@dataclass(frozen=True)
class Published:
    """A network of a package.

    Attributes
    ----------
    package : str
    path : tuple of str
        The file within it.
    inputs : callable
        From a number of calls and a seed to float32 ``(calls, *shape of one)``.
    constants : mapping of tuple
        By name, shapes of other inputs, which are zeros here.
    """

    package: str
    path: tuple[str, ...]
    inputs: Callable[[int, int], np.ndarray]
    constants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def _random(*shape: int, size: float = 1.0) -> Callable[[int, int], np.ndarray]:
    def drawn(calls: int, seed: int) -> np.ndarray:
        return (size * np.random.default_rng(seed).standard_normal((calls, *shape))).astype("float32")

    return drawn


def _of_pages(rows: int, columns: int, channels: int = 3, largest: float = 1.0) -> Callable[[int, int], np.ndarray]:
    def cut(calls: int, seed: int) -> np.ndarray:
        return largest * pages(calls, seed, max(rows, columns))[:, :channels, -rows:, :columns]

    return cut


#: By name. Values of spectrograms are drawn: exact forms take the same time for any.
NETWORKS = {
    "text-detector": Published(
        "rapidocr_onnxruntime", ("models", "ch_PP-OCRv4_det_infer.onnx"), _of_pages(320, 320)
    ),
    "text-reader": Published("rapidocr_onnxruntime", ("models", "ch_PP-OCRv4_rec_infer.onnx"), _of_pages(48, 320)),
    "text-direction": Published(
        "rapidocr_onnxruntime", ("models", "ch_ppocr_mobile_v2.0_cls_infer.onnx"), _of_pages(48, 192)
    ),
    "word-reader": Published("ddddocr", ("common.onnx",), _of_pages(64, 200, 1)),
    "boxes": Published("ddddocr", ("common_det.onnx",), _of_pages(416, 416, largest=255.0)),
    "listeners": Published("speechmos", ("dnsmos_models", "model_v8.onnx"), _random(900, 120)),
    "echo": Published(
        "speechmos", ("aecmos_models", "Run_1663915512_Stage_0.onnx"), _random(3, 300, 160), {"h0": (4, 1, 64)}
    ),
    "lost-packets": Published(
        "speechmos", ("plcmos_models", "plcmos_v2.onnx"), _random(1, 300, 257), {"rater_embed": (1, 64)}
    ),
    "notes": Published("basic_pitch", ("saved_models", "icassp_2022", "nmp.onnx"), _random(43844, 1, size=0.1)),
    "voice": Published(
        "silero_vad", ("data", "silero_vad_openvino_16k.onnx"), _random(576, size=0.1), {"state": (2, 1, 128)}
    ),
}  # fmt: skip


def one_to_one(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return a model from one input, others being zeros of the given shapes, to the first of its outputs."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for value in list(found.graph.input):
        if value.name in shapes:
            found.graph.input.remove(value)
            zeros = np.zeros(shapes[value.name], "float32")
            found.graph.initializer.append(numpy_helper.from_array(zeros, value.name))
    del found.graph.output[1:]
    return found


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference of outputs, as a share of the largest value."""
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def run(network: Published, threads: int, progress) -> list[dict]:
    """Build a network with every layer exact in fp32, and measure it with the peers.

    Raises
    ------
    SetupError
        If the package with the network is not installed.
    """
    model = one_to_one(load_onnx(package_file(network.package, *network.path)), network.constants)
    seen, unseen = network.inputs(CALLS, 1), network.inputs(CALLS, 2)
    with tempfile.TemporaryDirectory(prefix="published-") as folder:
        builder = Builder(model, [seen[:, None]], threads=threads, progress=progress)
        library = builder.build("fp32", options=AdvancedOptions(mode="dense"))
        fixed = Path(folder) / "fixed.onnx"
        onnx.save(with_fixed_images(model, [seen[:, None]]), fixed)
        specs = [our_spec(library, Path(folder) / "ours.so", "dense")]
        # The PyTorch peer knows few operators; it is the slowest of all on networks that it does.
        specs += [spec for spec in image_peer_specs(str(fixed), threads) if spec.engine != "torch"]
        with Harness(specs, threads, progress=progress) as harness:
            steps = turn_steps(harness, unseen, STEPS)
            harness.measure(unseen, rounds=ROUNDS, steps=steps, warmup=2)
            outputs = [given and given["calls"] for given in harness.outputs({"calls": unseen})]
            rows = harness.rows()
    published = next(o for o, spec in zip(outputs, specs, strict=True) if spec.engine == "onnxruntime")
    for row, given in zip(rows, outputs, strict=True):
        if given is not None:
            row["quality"] = {"difference": difference(given, published)}
    return rows


def main(given: list[str] | None = None) -> None:
    """Measure, print the rows, and write them to a file if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="network", help=", ".join(NETWORKS) + " (all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(given)
    found = []
    try:
        for name in arguments.networks or NETWORKS:
            if name not in NETWORKS:
                raise PlanError(f"network '{name}' is not known; accepted: {', '.join(NETWORKS)}")
            with progress_bars() as progress:
                rows = run(NETWORKS[name], arguments.threads, progress)
            print_rows(rows)
            peer, ours = fastest(rows, ("fp32",), False), fastest(rows, ("fp32",), True)
            print(f"{name}: fastest fp32 peer / ours: {peer['median_ms'] / ours['median_ms']:.2f}")
            found += [row | {"network": name} for row in rows]
            if arguments.json:
                write_json(arguments.json, "published", arguments.threads, found)
    except TvmDualError as error:
        sys.exit(f"published: {error}")


if __name__ == "__main__":
    main()
