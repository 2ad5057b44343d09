"""The suite dnsmos: networks of convolutions that score speech, exact, with and without zero skipping."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.audio.mixing import calibration_clips, evaluation_clips
from benchmarks.audio.mos import RATE, SCORES, scores, spectrogram
from benchmarks.harness import EngineSpec, Harness
from benchmarks.peers.images import image_peer_specs
from benchmarks.tables import fastest, print_rows
from tvm_dual.builder import Builder
from tvm_dual.errors import SetupError
from tvm_dual.options import AdvancedOptions

NAME = "dnsmos"
#: Options of the command that name what the suite reads.
FILES = ()
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes
    ----------
    rounds, steps : int
        Turns of each engine, timed calls per turn.
    calibration, clips : int
        Noisy clips to calibrate on; pairs of a clean and a noisy clip to time and score.
    """

    rounds: int
    steps: int
    calibration: int
    clips: int


FULL = Size(rounds=10, steps=6, calibration=12, clips=6)
SHORT = Size(rounds=3, steps=2, calibration=4, clips=2)


@dataclass(frozen=True, eq=False)
class Result:
    """Rows of all networks, each with its ``network``, and our reports."""

    rows: list[dict]
    reports: dict[str, str]


def show(result: Result, path: Path) -> None:
    """Print the result, whose rows are in the file `path`."""
    for network, report in result.reports.items():
        rows = [row for row in result.rows if row["network"] == network]
        print(f"{network}\n{report}")
        print_rows(rows)
        peer, ours = fastest(rows, ("fp32",), False), fastest(rows, ("fp32",), True, "skip")
        ratio = peer["median_ms"] / ours["median_ms"] if peer and ours else math.nan
        print(f"fastest fp32 peer / zero skipping alone: {ratio:.2f}")


def model_path(network: str) -> Path:
    """Return a network's file in the package ``speechmos``.

    Raises
    ------
    SetupError
        If the package is not installed.
    """
    found = importlib.util.find_spec("speechmos")
    if found is None:
        raise SetupError("package speechmos: not installed; run: pip install speechmos==0.0.1.1")
    return Path(found.submodule_search_locations[0]) / "dnsmos_models" / f"{network}.onnx"


def run(threads: int, size: Size, progress: Progress) -> Result:
    """Build each network with and without zero skipping, and measure both with the peers.

    Parameters
    ----------
    threads : int
    size : Size
    progress : callable
        Called with ``(phase, done, total)``.
    """
    data = np.stack([spectrogram(clip.noisy) for clip in _spread(calibration_clips(RATE), size.calibration)])
    pairs = _spread(evaluation_clips(RATE), size.clips)
    speech = np.stack([spectrogram(wave) for clip in pairs for wave in (clip.clean, clip.noisy)])
    rows, reports = [], {}
    with tempfile.TemporaryDirectory(prefix="dnsmos-") as folder:
        for network in SCORES:
            builder = Builder(model_path(network), [data], streaming=True, threads=threads, progress=progress)
            specs = []
            for mode in ("dense", "skip"):
                library = builder.build("fp32", options=AdvancedOptions(mode=mode))
                path = library.export_library(Path(folder) / f"{network}_{mode}.so")
                arguments = {"model_path": str(path), "precision": "fp32", "threads": threads}
                specs.append(EngineSpec("tvm_dual", mode, "fp32", "benchmarks.ours:deployed", arguments))
                reports[network] = str(library.report)
            specs += image_peer_specs(str(model_path(network)), threads)
            rows += _measure(network, specs, threads, size, speech, progress)
    return Result(rows, reports)


def _spread(items: list, count: int) -> list:
    """Return `count` items from all over a list."""
    return [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]


def _measure(network: str, specs, threads: int, size: Size, speech: np.ndarray, progress: Progress) -> list[dict]:
    with Harness(specs, threads, progress=progress) as harness:
        harness.measure(speech, rounds=size.rounds, steps=size.steps, warmup=1)
        outputs = [None if found is None else found["speech"] for found in harness.outputs({"speech": speech})]
        rows = [{"network": network, **row} for row in harness.rows()]
    # ONNX Runtime computes the model as it was published.
    (published,) = [o for o, spec in zip(outputs, specs, strict=True) if spec.engine == "onnxruntime"]
    for row, found in zip(rows, outputs, strict=True):
        if found is not None and published is not None:
            got, wanted = scores(network, found), scores(network, published)
            row["quality"] = {f"{name}_mos": float(got[name].mean()) for name in got}
            row["quality"]["mos_change"] = float(max(np.abs(got[name] - wanted[name]).max() for name in got))
    return rows
