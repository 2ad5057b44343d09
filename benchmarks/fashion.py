"""What the suites on Fashion-MNIST share: a trained network, its accuracy, ours beside the peers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.fashion_data import HELD_BACK, Fashion, read_fashion
from benchmarks.image_suite import Judge, Network, Progress, Result, Turns, run_networks
from tvm_dual.errors import DataError
from tvm_dual.options import AdvancedOptions

#: Options of the command that name what the suite reads.
FILES = ("checkpoint",)
#: Accuracy in percent that the plan may lose on images that were held back from training, and on their mirror images.
MAX_DROP = 0.3
#: The same of a plan for few operations: nearly all of what is allowed in the end.
COUNTED_DROP = 0.4
#: Percentage points of accuracy that an engine of the same quality may be off by.
SAME = ("accuracy", 0.5)
#: Little modules of an eighth of a layer's channels; two and four times as many are looked at, too.
DUAL = AdvancedOptions(rule="damage", dimension_share=1 / 8)


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes
    ----------
    turns : Turns
    calibration, judging, images : int
        Images to calibrate on, to choose thresholds on, and to time and judge.
    options : AdvancedOptions
        Of the dual form.
    """

    turns: Turns
    calibration: int
    judging: int
    images: int
    options: AdvancedOptions = DUAL


FULL = Size(
    Turns(10, 60),
    calibration=4000,
    judging=HELD_BACK,
    images=10_000,
    options=replace(DUAL, finetune_steps=300, search_steps=4),
)
SHORT = Size(Turns(3, 30), calibration=500, judging=1000, images=1000)


def run(
    threads: int, size: Size, progress: Progress, checkpoint: Path | None = None, counted: float | None = None
) -> Result:
    """Build the network in all forms, and measure it with the peers.

    Parameters
    ----------
    threads : int
    size : Size
    progress : callable
        Called with ``(phase, done, total)``.
    checkpoint : Path
        The ONNX file that ``examples/fashion/train.py`` wrote.
    counted : float, optional
        Accuracy in percent that a plan for few operations may lose; without it there is no such plan.

    Raises
    ------
    DataError
        If there is no checkpoint, or no data.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        raise DataError(
            f"--checkpoint: {checkpoint or 'not given'}; accepted: the ONNX file that examples/fashion/train.py wrote"
        )
    train, test = read_fashion("train"), read_fashion("t10k")
    judging = with_mirrored(Fashion(train.images[-size.judging :], train.labels[-size.judging :]))
    labels = test.labels[: size.images]
    network = Network(
        Path(checkpoint).stem,
        Path(checkpoint),
        train.images[: size.calibration],
        test.images[: size.images],
        lambda outputs, published: {"accuracy": accuracy(outputs, labels)},
        SAME,
        Judge(judging.images, lambda outputs: accuracy(outputs, judging.labels)),
        MAX_DROP,
        size.options,
        quantized=True,
        counted=counted,
    )
    return run_networks([network], threads, size.turns, progress)


def with_mirrored(data: Fashion) -> Fashion:
    """Return images and their mirror images, which networks are trained on as well.

    Which images a plan loses is chance: of 5,000 that 0.2 points are ten. Twice as many tell more.
    """
    return Fashion(np.concatenate([data.images, data.images[..., ::-1]]), np.tile(data.labels, 2))


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the percentage of images whose highest output is their label's."""
    return float((outputs.reshape(len(labels), -1).argmax(axis=1) == labels).mean() * 100)
