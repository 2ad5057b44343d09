"""The suite word-lm: the recurrent layer of a word model, ours in every form beside the strongest peers.

What is compiled is the layer alone, from an embedded word to a state. Embedding and output layer are the same for
every engine and stand outside: they turn the engines' outputs into perplexity.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from benchmarks.corpus import Corpus, read_corpus
from benchmarks.harness import EngineSpec, Harness
from benchmarks.loading import measure_loading
from benchmarks.ours import our_spec
from benchmarks.peers import peer_specs
from benchmarks.reading import Reading, SamePerplexity, in_sequences
from benchmarks.tables import fastest, print_result
from benchmarks.word_model import WordModel, layer_onnx, load_checkpoint
from schedules.cpu import available_cores
from tvm_dual.builder import Builder
from tvm_dual.errors import ModelError
from tvm_dual.library import DualLibrary
from tvm_dual.options import AdvancedOptions

NAME = "word-lm"
FILES = ("checkpoint", "corpus")
#: Words per call where peers read whole sequences.
SEQUENCE = 35
Progress = Callable[[str, int, int], None]

#: Little modules: for a layer of 1500 units 375 directions at 4 bits. At 0.45 % higher perplexity (LSTM, closed form)
#: 5 % of the rows are open, with half as many directions 15 %, with 375 at 8 bits 7 %.
LITTLE = AdvancedOptions(rule="damage", dimension_share=1 / 8, little_bits=4, search_steps=4)


class Form(NamedTuple):
    """One of our libraries: `sequence` words a call, on `threads` if they are not the suite's."""

    mode: str
    precision: str
    sequence: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes
    ----------
    rounds, steps : int
        Turns of each engine, timed words per turn.
    calibration, judging, evaluation : tuple of int
        Streams, and words in each: of the training text to calibrate on, of the validation text to choose thresholds
        on, and of the test text to report perplexity of. Nothing is chosen on the last.
    exact_peers : bool
        Whether perplexity is computed for engines that run the model as it is, too.
    max_drop : float
        How much higher the perplexity on the judging text may be, in percent; the text reported on is another, on
        which the change has been 0.1 to 0.2 more.
    options : AdvancedOptions
        Of all our builds.
    """

    rounds: int
    steps: int
    calibration: tuple[int, int]
    judging: tuple[int, int]
    evaluation: tuple[int, int]
    exact_peers: bool
    max_drop: float = 0.32
    options: AdvancedOptions = LITTLE


FULL = Size(
    10,
    140,
    calibration=(140, 400),
    judging=(96, 115),
    evaluation=(128, 115),
    exact_peers=True,
    options=replace(LITTLE, finetune_steps=400),
)
SHORT = Size(2, 70, (20, 300), (16, 60), (16, 60), exact_peers=False, options=replace(LITTLE, search_steps=0))


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gives: rows of DESIGN's JSON form, and the dual library."""

    rows: list[dict]
    library: DualLibrary


def run(
    threads: int, size: Size, progress: Progress, checkpoint: Path | None = None, corpus: Path | None = None
) -> Result:
    """Build all forms, measure them with the peers, and compute their perplexity.

    Parameters
    ----------
    threads : int
    size : Size
    progress : callable
        Called with ``(phase, done, total)``.
    checkpoint : Path
        A word model that ``examples/word_lm/train.py`` made.
    corpus : Path, optional
        See `benchmarks.corpus.read_corpus`.

    Raises
    ------
    TvmDualError
        If the checkpoint or the corpus is not there or not what it should be.
    """
    model, text = load(checkpoint, corpus)
    with tempfile.TemporaryDirectory(prefix="word-lm-") as scratch:
        folder = Path(scratch)
        libraries = build_forms(model, text, threads, size, progress)
        specs = our_specs(libraries, folder) + all_peers(model, threads, folder)
        reading = Reading(model, text.test, *size.evaluation)
        rows = measure(specs, threads, size, reading, progress)
        for row, spec in zip(rows, specs, strict=True):
            if spec.mode == "dual" and "error" not in row:
                row.update(measure_loading(Path(spec.arguments["model_path"])))
        return Result(rows, libraries[Form("dual", "int8")])


def show(result: Result, path: Path) -> None:
    """Print the result, whose rows are in the file `path`."""
    print_result(result.rows, result.library)
    for line in figures(result.rows):
        print(line)


def figures(rows: list[dict]) -> list[str]:
    """Return a line for each figure of this suite that other suites do not have."""
    lines = []
    for row in rows:
        if "threads" in row and "error" not in row:
            one = fastest(rows, (row["precision"],), True, row["mode"])
            lines.append(
                f"{row['mode']} {row['precision']}, {row['threads']} threads: {row['median_ms']:.3f} ms a step"
                + (f", {one['median_ms'] / row['median_ms']:.2f} times as fast" if one else "")
            )
    for precision in ("fp32", "int8"):
        peer = fastest(rows, (precision,), False, sequence=SEQUENCE)
        if peer:
            lines.append(f"fastest {precision} peer, {SEQUENCE} steps a call: {peer['median_ms']:.3f} ms a step")
        dual, dense = (fastest(rows, (precision,), True, mode) for mode in ("dual", "dense"))
        if dual and dense:
            share = dual["weight_bytes_read"] / dense["weight_bytes_read"]
            lines.append(f"weights read per step, dual {precision} / dense {precision}: {share:.3f}")
        if dual and "quality" in dual:
            lines.append(f"perplexity of dual {precision} against dense: {dual['quality']['change_percent']:+.2f} %")
    return lines


def load(checkpoint: Path | None, corpus: Path | None) -> tuple[WordModel, Corpus]:
    """Read the model and the text; errors as `run`'s."""
    if checkpoint is None:
        raise ModelError("--checkpoint: not given; accepted: a word model that examples/word_lm/train.py made")
    return load_checkpoint(checkpoint), read_corpus(corpus)


def make_builder(
    model: WordModel,
    text: Corpus,
    threads: int,
    size: Size,
    progress: Progress,
    sequence: int = 1,
    like: Builder | None = None,
) -> Builder:
    """Return the layer alone, for calls of `sequence` words, calibrated on training text."""
    calibration = Reading(model, text.train, *size.calibration)
    streams = [in_sequences(stream, sequence) for stream in calibration.inputs]
    options = {"streaming": True, "threads": threads, "progress": progress, "like": like}
    return Builder(layer_onnx(model, sequence), streams, **options)


def build_forms(
    model: WordModel, text: Corpus, threads: int, size: Size, progress: Progress
) -> dict[Form, DualLibrary]:
    """Return our libraries; word by word the duals are there for twice the threads, too, if there are the cores."""
    found, builder = {}, None
    for sequence in (1, SEQUENCE):
        builder = make_builder(model, text, threads, size, progress, sequence, like=builder)
        evaluate = SamePerplexity(Reading(model, text.valid, *size.judging), sequence)
        for precision in ("int8", "fp32"):
            dual = builder.build(precision, evaluate=evaluate, max_drop=size.max_drop, options=size.options)
            found[Form("dual", precision, sequence)] = dual
            if sequence == 1 and 2 * threads <= available_cores():
                twice = builder.with_threads(2 * threads)
                same = twice.build(precision, options=size.options, plan=dual.report.plan)
                found[Form("dual", precision, sequence, 2 * threads)] = same
        for mode, precision in (("dense", "fp32"), ("dense", "int8"), ("little", "int8")):
            progress(f"building {mode} {precision}", len(found), 12)
            options = replace(size.options, mode=mode)
            found[Form(mode, precision, sequence)] = builder.build(precision, options=options)
    return found


def our_specs(libraries: dict[Form, DualLibrary], folder: Path) -> list[EngineSpec]:
    """Return our libraries as engines, exported to `folder`."""
    return [
        our_spec(library, folder / f"word_lm_{i}.so", form.mode, form.sequence, form.threads)
        for i, (form, library) in enumerate(libraries.items())
    ]


def all_peers(model: WordModel, threads: int, folder: Path) -> list[EngineSpec]:
    """Return every peer, word by word and in sequences of `SEQUENCE` words."""
    path = folder / "word_lm.onnx"
    onnx.save(layer_onnx(model), path)
    return [spec for sequence in (1, SEQUENCE) for spec in peer_specs(str(path), threads, sequence, cell=model.cell)]


def measure(specs: list[EngineSpec], threads: int, size: Size, reading: Reading, progress: Progress) -> list[dict]:
    """Return the rows of engines: their times on the text, in turns, and its perplexity by their outputs."""
    clips = {str(i): stream for i, stream in enumerate(reading.inputs)}
    with Harness(specs, threads, progress=progress) as harness:
        harness.measure(np.concatenate(reading.inputs)[: 2 * size.rounds * size.steps], size.rounds, size.steps)
        rows = harness.rows()
        wanted = [i for i, spec in enumerate(specs) if size.exact_peers or not _is_exact(spec)]
        for done, i in enumerate(wanted):
            progress(f"quality of {specs[i].engine} {specs[i].mode} {specs[i].precision}", done, len(wanted))
            outputs = harness.outputs_of(i, clips)
            if outputs is not None:
                perplexity = reading.perplexity(np.stack([outputs[name] for name in clips]))
                rows[i]["quality"] = {"perplexity": perplexity, "change_percent": reading.change(perplexity)}
    return rows


def _is_exact(spec: EngineSpec) -> bool:
    """Whether an engine runs the model as it is, so that its perplexity is that of our dense fp32 form."""
    return spec.precision == "fp32" and spec.engine != "tvm_dual"
