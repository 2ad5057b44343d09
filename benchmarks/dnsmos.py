"""The suite dnsmos: networks of convolutions that score speech."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.audio.mixing import NoisyClip, calibration_clips, evaluation_clips, judging_clips
from benchmarks.audio.mos import RATE, SCORES, scores, spectrogram
from benchmarks.image_suite import Judge, Network, Progress, Result, Turns, run_networks, show, spread
from benchmarks.packages import package_file
from tvm_dual.options import AdvancedOptions

__all__ = ["FILES", "FULL", "NAME", "SHORT", "run", "show"]

NAME = "dnsmos"
#: Options of the command that name what the suite reads.
FILES = ()
#: Largest change of a score of the judging clips that the plan may make: other clips change by up to twice as much.
MAX_CHANGE = 0.02
#: Largest change of a score of an engine that is of the same quality.
SAME = ("mos_change", 0.05)


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes
    ----------
    turns : Turns
    calibration, judging, clips : int
        Pairs of a clean and a noisy clip: to calibrate on, to judge plans on, and to time and score.
    """

    turns: Turns
    calibration: int
    judging: int
    clips: int


FULL = Size(Turns(10, 6), calibration=6, judging=6, clips=6)
SHORT = Size(Turns(3, 2), calibration=2, judging=2, clips=2)


def network_path(network: str) -> Path:
    """Return a network's file in the package ``speechmos``; raises as `benchmarks.packages.package_file` does."""
    return package_file("speechmos", "dnsmos_models", f"{network}.onnx")


def run(threads: int, size: Size, progress: Progress) -> Result:
    """Build each network in all forms, and measure it with the peers.

    Parameters
    ----------
    threads : int
    size : Size
    progress : callable
        Called with ``(phase, done, total)``.

    Raises
    ------
    SetupError
        If the package with the networks is not installed.
    """
    data, judging, speech = (
        _pairs(clips, count)
        for clips, count in (
            (calibration_clips, size.calibration),
            (judging_clips, size.judging),
            (evaluation_clips, size.clips),
        )
    )
    networks = [
        Network(
            name,
            network_path(name),
            data,
            speech,
            partial(_quality, name),
            SAME,
            Judge(judging, _SameScores(name)),
            MAX_CHANGE,
            AdvancedOptions(rule="damage"),
            quantized=True,
        )
        for name in SCORES
    ]
    return run_networks(networks, threads, size.turns, progress)


def _pairs(clips: Callable[[int], list[NoisyClip]], count: int) -> np.ndarray:
    """Return the spectrograms of `count` clean clips and of the same with noise: (2 count, ...)."""
    waves = [wave for clip in spread(clips(RATE), count) for wave in (clip.clean, clip.noisy)]
    return np.stack([spectrogram(wave) for wave in waves])


class _SameScores:
    """From outputs to the largest change of a score, below zero; the first ones are what others are compared to."""

    def __init__(self, network: str) -> None:
        self._network, self._wanted = network, None

    def __call__(self, outputs: np.ndarray) -> float:
        found = scores(self._network, outputs)
        if self._wanted is None:
            self._wanted = found
        return -_largest_change(found, self._wanted)


def _quality(network: str, outputs: np.ndarray, published: np.ndarray) -> dict[str, float]:
    got, wanted = scores(network, outputs), scores(network, published)
    means = {f"{name}_mos": float(values.mean()) for name, values in got.items()}
    return {**means, "mos_change": _largest_change(got, wanted)}


def _largest_change(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    return float(max(np.abs(got[name] - wanted[name]).max() for name in got))
