"""``tvm-dual demo``: a speech denoiser built, measured, exported, reloaded, heard and seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

import tvm_dual
from benchmarks import nsnet2
from benchmarks.plots import demo_picture
from benchmarks.results import write_json
from benchmarks.tables import print_result
from tvm_dual.console import progress_bars
from tvm_dual.errors import DataError, LibraryError

#: Where the clip that is written and drawn stands among those evaluated.
_CLIP = 1


def run(threads: int, short: bool, folder: Path) -> None:
    """Run the demo; it writes a library, a denoised clip, a picture and its measurements to `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--out '{folder}': cannot be made ({error.strerror}); accepted: a folder, or a name for one"
        ) from error
    print("NSNet2-48k, a speech denoiser of 6.2 million weights, runs on every 11 ms of sound.")
    with progress_bars() as progress:
        result = nsnet2.run(threads, nsnet2.SHORT if short else nsnet2.DEMO, progress)

    path = result.library.export_library(folder / "nsnet2.so")
    _check_reloaded(path, result)
    clip = result.speech.clips[_CLIP]
    dual, dense = (
        result.speech.waves(result.gains[f"tvm_dual {mode} {precision}"])[_CLIP]
        for mode, precision in (("dual", "int8"), ("dense", "fp32"))
    )
    soundfile.write(folder / "noisy.flac", _playable(clip.noisy), clip.rate)
    soundfile.write(folder / "denoised.flac", _playable(dual), clip.rate)
    panels = [(f"noisy ({clip.condition.label})", clip.noisy), ("dense fp32", dense), ("dual int8", dual)]
    demo_picture([row for row in result.rows if "median_ms" in row], panels, clip.rate, folder / "demo.png")
    write_json(folder / "demo.json", nsnet2.NAME, threads, result.rows)

    heading = "\nMilliseconds per frame and the quality of the denoised speech (higher is better):"
    print_result(result.rows, result.library, heading)
    names = "nsnet2.so, noisy.flac, denoised.flac, demo.png, demo.json"
    print(f"\nIn {folder}/: {names}.\nUse it: tvm_dual.load('{folder}/nsnet2.so').stream()(frame)")


def _check_reloaded(path: Path, result: nsnet2.Result) -> None:
    """The exported library must give the built one's values, bit for bit."""
    built, loaded = result.library.stream(), tvm_dual.load(path).stream()
    for frame in result.speech.features[_CLIP][:100]:
        if not np.array_equal(built(frame), loaded(frame)):
            raise LibraryError(f"'{path}' does not give the values of the library it was exported from")


def _playable(wave: np.ndarray) -> np.ndarray:
    """Scale down what would clip."""
    return wave / max(1.0, float(np.abs(wave).max()))
