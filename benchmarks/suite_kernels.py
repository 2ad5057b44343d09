"""``python -m benchmarks.suite_kernels SUITE...``: tune the kernels of suites, for one level or several.

    python -m benchmarks.suite_kernels nsnet2 word-lm shapes --checkpoints lstm.pt gru.pt --targets avx512_vnni avx2

The suites' models are read and calibrated once; every level that this CPU runs is then measured on it. What the logs
hold already is not measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from schedules.conv2d_byte_tile import LANES
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS, native_isa
from schedules.families import Workload
from schedules.quantize import round_up
from tvm_dual.errors import DataError, TvmDualError
from tvm_dual.options import AdvancedOptions
from tvm_dual.targets import checked_target
from tvm_dual.tuning import records
from tvm_dual.tuning.api import TRIALS, model_kernels, tune_kernels
from tvm_dual.tuning.display import tuning_display
from tvm_dual.tuning.lookup import LOGS
from tvm_dual.tuning.manifest import SHIPPED
from tvm_dual.tuning.problem import Usage
from tvm_dual.tuning.report import report
from tvm_dual.tuning.workloads import common_workloads

Kernels = dict[Workload, Usage]


def nsnet2_kernels(threads: int, _checkpoints: Sequence[Path]) -> Kernels:
    """Return what planning compares for the speech denoiser, at the densities of the calibration speech."""
    from benchmarks.audio.mixing import calibration_clips
    from benchmarks.denoising import Speech
    from benchmarks.nsnet2 import FULL, model_path

    speech = Speech(calibration_clips())
    return model_kernels(model_path(), speech.features, streaming=True, threads=threads, options=FULL.options)


def word_lm_kernels(threads: int, checkpoints: Sequence[Path]) -> Kernels:
    """Return what planning compares for word models, word by word and in sequences."""
    from benchmarks.reading import Reading, in_sequences
    from benchmarks.word_lm import LITTLE, SEQUENCE, SHORT, load
    from benchmarks.word_model import layer_onnx

    found = {}
    for path in [path for path in checkpoints if path.suffix == ".pt"] or [None]:
        model, text = load(path, None)
        reading = Reading(model, text.train, *SHORT.calibration)
        for sequence in (1, SEQUENCE):
            streams = [in_sequences(stream, sequence) for stream in reading.inputs]
            layer = layer_onnx(model, sequence)
            found |= model_kernels(layer, streams, streaming=True, threads=threads, options=LITTLE)
    return found


def shapes_kernels(threads: int, _checkpoints: Sequence[Path]) -> Kernels:
    """Return matrices of common shapes, as ``tvm-dual tune --shapes`` does."""
    return common_workloads(checked_target("native", threads), threads)


def logged_kernels(threads: int, _checkpoints: Sequence[Path]) -> Kernels:
    """Return what the project's logs hold for any CPU and level, as it was measured there; that takes no model."""
    found = {}
    for folder in sorted(path.parent for path in SHIPPED.glob(f"*/{records.FILE}")):
        for record in records.read(folder):
            if record.verdict and record.workload.threads == threads:
                found[replace(record.workload, isa=native_isa().records)] = Usage(record.density, record.vectors)
    return found


#: Tiles or outputs that are open in single convolutions, and families of floats with what is left of their work.
_OPEN = 0.2
_FLOATS = (("conv2d", 1.0), ("conv2d_skip", 0.25), ("conv2d_gated", _OPEN), ("conv2d_single", _OPEN))


def layers_kernels(threads: int, _checkpoints: Sequence[Path]) -> Kernels:
    """Return the suite's single convolutions: dense, three of four inputs zero, one of five tiles or outputs open."""
    from benchmarks.layers import LAYERS, SHARE

    isa, found = checked_target("native", threads), {}
    for layer in LAYERS:
        extents = (1, layer.size, layer.size, layer.inputs, layer.outputs)
        kernel, strides, padding = ((n,) * 2 for n in (layer.kernel, layer.stride, layer.kernel // 2))
        shape = Conv2d(*extents, kernel, strides, padding * 2).geometry
        for family, density in _FLOATS:
            found[Workload(family, shape, isa, threads)] = Usage(density)
        # The suite's libraries read and write floats; in a network both are bytes.
        for images in ((0, 0), (1, 1)):
            found[Workload("conv2d_int8", (*shape, *images), isa, threads)] = Usage()
            few = round_up(int(SHARE * layer.outputs), LANES)
            found[Workload("conv2d_gated_int8", (*shape, few, *images), isa, threads)] = Usage(_OPEN)
    return found


def dnsmos_kernels(threads: int, _checkpoints: Sequence[Path]) -> Kernels:
    """Return what planning compares for the networks that score speech."""
    from benchmarks.audio.mixing import calibration_clips
    from benchmarks.audio.mos import RATE, SCORES, spectrogram
    from benchmarks.dnsmos import SHORT, network_path
    from benchmarks.image_suite import spread

    clips, found = spread(calibration_clips(RATE), SHORT.calibration), {}
    speech = np.stack([spectrogram(clip.noisy) for clip in clips])
    for name in SCORES:
        found |= _network_kernels(network_path(name), speech, threads, AdvancedOptions(rule="damage"))
    return found


def fashion_kernels(threads: int, checkpoints: Sequence[Path]) -> Kernels:
    """Return what planning compares for networks on images of clothes."""
    from benchmarks.fashion import DUAL, SHORT
    from benchmarks.fashion_data import read_fashion

    paths, found = [path for path in checkpoints if path.suffix == ".onnx"], {}
    if not paths:
        raise DataError("--checkpoints: no .onnx file; accepted: what examples/fashion/train.py wrote")
    images = read_fashion("train").images[: SHORT.calibration]
    for path in paths:
        found |= _network_kernels(path, images, threads, DUAL)
    return found


def crepe_kernels(threads: int, _checkpoints: Sequence[Path]) -> Kernels:
    """Return what planning compares for the network that tells pitches."""
    from benchmarks.crepe import OPTIONS, SHORT, calibration_frames, network_model

    return _network_kernels(network_model(), calibration_frames(SHORT), threads, OPTIONS)


def ffdnet_kernels(threads: int, _checkpoints: Sequence[Path]) -> Kernels:
    """Return what planning compares for the network that denoises images."""
    from benchmarks.ffdnet import FULL, OPTIONS, network_model, noisy_crops, photograph

    return _network_kernels(network_model(FULL), noisy_crops(photograph(), FULL), threads, OPTIONS)


def _network_kernels(
    model: Path | onnx.ModelProto, calls: np.ndarray, threads: int, options: AdvancedOptions
) -> Kernels:
    """Return what planning compares for a network without states."""
    return model_kernels(model, [calls], streaming=True, threads=threads, options=options)


#: By suite: from threads and checkpoints to its kernels.
SUITES: dict[str, Callable[[int, Sequence[Path]], Kernels]] = {
    "nsnet2": nsnet2_kernels,
    "word-lm": word_lm_kernels,
    "shapes": shapes_kernels,
    "logged": logged_kernels,
    "layers": layers_kernels,
    "dnsmos": dnsmos_kernels,
    "fashion": fashion_kernels,
    "crepe": crepe_kernels,
    "ffdnet": ffdnet_kernels,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune what the command line says, and print what the logs hold then."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--targets", nargs="+", default=["native"], help="levels that this CPU runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--logs", type=Path, default=LOGS)
    parser.add_argument(
        "--checkpoints", type=Path, nargs="+", default=[], help=".pt files for word-lm, .onnx for fashion"
    )
    options = parser.parse_args(arguments)
    levels = [ISAS[checked_target(target, options.threads)].records for target in options.targets]
    for suite in options.suites:
        kernels = SUITES[suite](options.threads, options.checkpoints)
        for level in levels:
            with tuning_display() as watcher:
                folder = tune_kernels(kernels, level, trials=options.trials, logs=options.logs, watcher=watcher)
            print(f"{suite}, {level}\n{report(folder)}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except TvmDualError as error:
        sys.exit(f"suite_kernels: {error}")
