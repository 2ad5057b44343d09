"""``python -m benchmarks.text_detector``: a published detector of text, ours in fp32 beside the peers.

The detector of PP-OCR (PyPI's rapidocr-onnxruntime) is what networks for small devices look like: inverted residuals
of depthwise convolutions, squeeze and excitation, hard swishes, a pyramid of images that are made larger, transposed
convolutions. Quality is how well the pixels that are found agree with those of the published model, on pages of
printed words.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib.figure
import numpy as np
import onnx
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.harness import Harness
from benchmarks.ours import our_spec
from benchmarks.packages import package_file
from benchmarks.peers.images import image_peer_specs
from benchmarks.results import write_json
from benchmarks.tables import fastest, print_rows
from tvm_dual.builder import Builder
from tvm_dual.console import progress_bars
from tvm_dual.errors import TvmDualError
from tvm_dual.options import AdvancedOptions

PACKAGE = "rapidocr_onnxruntime"
MODEL = ("models", "ch_PP-OCRv4_det_infer.onnx")
#: Rows and columns of a page, pages to calibrate on and to measure with, rounds, and calls of a round.
PIXELS, CALIBRATION, PAGES, ROUNDS, CALLS = 320, 8, 12, 10, 12
#: Mean and deviation of the values of white and black, as the package scales them, and what is text to it.
_MEAN, _DEVIATION, _IS_TEXT = 0.5, 0.5, 0.3
_WORDS = [
    "little",
    "modules",
    "approximate",
    "every",
    "layer",
    "a",
    "gate",
    "opens",
    "units",
    "that",
    "matter",
    "and",
    "kernels",
    "compute",
    "those",
]


def pages(count: int, seed: int, pixels: int = PIXELS) -> np.ndarray:
    """Return pages of printed words of several sizes, as the network reads them.

    Returns
    -------
    ndarray, float32, (count, 3, pixels, pixels)
        From -1, black, to 1, white.
    """
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        figure = matplotlib.figure.Figure(figsize=(pixels / 100, pixels / 100), dpi=100)
        canvas, place = FigureCanvasAgg(figure), 0.94
        while place > 0.05:
            size = random.uniform(7, 22)
            line = " ".join(random.choice(_WORDS, 4))
            figure.text(random.uniform(0.02, 0.2), place, line, size=size, color=str(random.uniform(0, 0.4)))
            place -= size / 100 * random.uniform(0.5, 1.2)
        canvas.draw()
        found.append(np.asarray(canvas.buffer_rgba())[:, :, :3].transpose(2, 0, 1))
    return ((np.stack(found) / 255 - _MEAN) / _DEVIATION).astype("float32")


def fixed(path: Path, pixels: int = PIXELS) -> onnx.ModelProto:
    """Return the network for one page of `pixels` rows and columns a call."""
    model = onnx.load(path)
    shape = model.graph.input[0].type.tensor_type.shape
    for dimension, extent in zip(shape.dim, (1, 3, pixels, pixels), strict=True):
        dimension.dim_value = extent
    del model.graph.value_info[:]
    return model


def agreement(outputs: np.ndarray, published: np.ndarray) -> float:
    """Return the share of the pixels that both outputs or one of them find text at, which both do, in percent."""
    found, wanted = (values.reshape(-1) > _IS_TEXT for values in (outputs, published))
    return float(100 * (found & wanted).sum() / max(1, (found | wanted).sum()))


def run(threads: int, progress) -> list[dict]:
    """Build the network exactly, with all inputs and with nonzero ones alone, and measure it with the peers.

    Raises
    ------
    SetupError
        If the package with the network is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="text-detector-") as folder:
        path = Path(folder) / "detector.onnx"
        onnx.save(fixed(package_file(PACKAGE, *MODEL)), path)
        builder = Builder(path, [pages(CALIBRATION, 1)], streaming=True, threads=threads, progress=progress)
        specs = [
            our_spec(builder.build("fp32", options=AdvancedOptions(mode=mode)), Path(folder) / f"{mode}.so", mode)
            for mode in ("dense", "skip")
        ]
        # The PyTorch peer knows few operators; it is the slowest of all on networks that it does.
        specs += [spec for spec in image_peer_specs(str(path), threads) if spec.engine != "torch"]
        frames = pages(PAGES, 2)
        with Harness(specs, threads, progress=progress) as harness:
            harness.measure(frames, rounds=ROUNDS, steps=CALLS, warmup=2)
            outputs = [given and given["pages"] for given in harness.outputs({"pages": frames})]
            rows = harness.rows()
    published = next(o for o, s in zip(outputs, specs, strict=True) if s.engine == "onnxruntime")
    for row, given in zip(rows, outputs, strict=True):
        if given is not None:
            row["quality"] = {"text_agreement": agreement(given, published)}
    return rows


def main() -> None:
    """Measure, print the rows, and write them to a file if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_detector", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        with progress_bars() as progress:
            rows = run(arguments.threads, progress)
    except TvmDualError as error:
        sys.exit(f"text_detector: {error}")
    print_rows(rows)
    peer, ours = fastest(rows, ("fp32",), False), fastest(rows, ("fp32",), True)
    print(f"fastest fp32 peer / ours: {peer['median_ms'] / ours['median_ms']:.2f}")
    if arguments.json:
        write_json(arguments.json, "text-detector", arguments.threads, rows)


if __name__ == "__main__":
    main()
