"""What suites of networks without states share: ours in every form beside the peers, one network after another."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.harness import EngineSpec, Harness
from benchmarks.levels import our_bf16, our_target
from benchmarks.ours import our_spec
from benchmarks.peers.images import image_peer_specs, quantized_peer_specs
from benchmarks.tables import LOW, fastest, print_rows
from relay_passes.site_plan import COARSE
from tvm_dual.builder import Builder
from tvm_dual.errors import BudgetError
from tvm_dual.library import DualLibrary
from tvm_dual.options import AdvancedOptions

Progress = Callable[[str, int, int], None]
#: Calls whose outputs an engine is asked for at once: on a busy machine all of them take longer than it is waited for.
_AT_ONCE = 200
#: Kinds of little modules of the mode ``floats``: dual where no layer is a copy on bytes.
_FLOATS = ("projection", COARSE)


@dataclass(frozen=True)
class Turns:
    """Rounds of the measurement, and timed calls of each engine in a round."""

    rounds: int
    steps: int


@dataclass(frozen=True, eq=False)
class Network:
    """One network and how it is judged.

    Attributes
    ----------
    name : str
    path : Path
        An ONNX model of one input.
    calibration : ndarray, float32, (calls, *input shape)
    frames : ndarray, float32, (calls, *input shape)
        What is timed and judged.
    quality : callable
        From outputs ``(calls, outputs)`` and those of the published model to numbers by name.
    tolerance : (str, float)
        Which of these numbers may differ from the published model's, by how much, where quality is the same.
    evaluate : callable
        From a library to its quality on data that is neither `calibration` nor `frames`; `max_drop` is what the
        plan may lose of it.
    max_drop : float
    options : AdvancedOptions
        Of the dual form.
    quantized : bool
        Whether it is run in int8, too: our dense form, and the dual one.
    counted : float or None
        What a plan for few operations, of floats, may lose, however long it takes; None: there is none.
    """

    name: str
    path: Path
    calibration: np.ndarray
    frames: np.ndarray
    quality: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    tolerance: tuple[str, float]
    evaluate: Callable[[DualLibrary], float]
    max_drop: float
    options: AdvancedOptions
    quantized: bool = False
    counted: float | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """Rows of all networks, each with its ``network``, and our reports."""

    rows: list[dict]
    reports: dict[str, str]


class Judge:
    """From a library to the score of what it gives for some calls."""

    def __init__(self, calls: np.ndarray, score: Callable[[np.ndarray], float]) -> None:
        """Judge on `calls`, float32 (calls, *input shape), by `score` of all outputs, float32 (calls, ...)."""
        self._calls, self._score = calls, score

    def __call__(self, library: DualLibrary) -> float:
        """Run every call."""
        run = library.stream()
        return self._score(np.concatenate([run(call[None]) for call in self._calls]))


def run_networks(networks: list[Network], threads: int, turns: Turns, progress: Progress) -> Result:
    """Build each network in all our forms, and measure them with the peers."""
    rows, reports = [], {}
    for network in networks:
        with tempfile.TemporaryDirectory(prefix="images-") as folder:
            ours = _ours(network, Path(folder), threads, progress)
            reports[network.name] = "\n\n".join(ours.reports)
            specs = ours.specs + image_peer_specs(str(network.path), threads)
            if network.quantized:
                specs += quantized_peer_specs(str(network.path), network.calibration, Path(folder), threads)
            rows += _measure(network, specs, threads, turns, progress)
            rows += [{"network": network.name, **row} for row in ours.refused]
    return Result(rows, reports)


def show(result: Result, path: Path) -> None:
    """Print the result, whose rows are in the file `path`."""
    for network, report in result.reports.items():
        rows = [row for row in result.rows if row["network"] == network]
        print(f"{network}\n{report}")
        print_rows(rows)
        peer32, peer = fastest(rows, ("fp32",), False), fastest(rows, ("fp32", *LOW), False)
        dual, dense = (fastest(rows, ("fp32",), True, mode) for mode in ("dual", "dense"))
        same = [row for row in rows if row.get("same_quality")]
        for name, slow, fast in (
            ("fastest fp32 peer / dual fp32", peer32, dual),
            ("fastest fp32 peer / dual fp32 without bytes", peer32, fastest(rows, ("fp32",), True, "floats")),
            ("fastest fp32 peer / zero skipping alone", peer32, fastest(rows, ("fp32",), True, "skip")),
            ("fastest fp32 peer / our dense fp32", peer32, dense),
            ("fastest peer of any precision / dual fp32", peer, dual),
            ("fastest peer of any precision / ours of any", peer, fastest(rows, ("fp32", *LOW), True)),
            ("the same, both of the same quality", *(fastest(same, ("fp32", *LOW), ours) for ours in (False, True))),
        ):
            print(f"{name}: {slow['median_ms'] / fast['median_ms'] if slow and fast else math.nan:.2f}")
        for mode, name in {"dual": "dual", "floats": "dual without bytes", "operations": "few operations"}.items():
            if row := fastest(rows, ("fp32",), True, mode):
                print(f"operations dense / {name}: {row['dense_operations'] / row['operations']:.2f}")


def spread(items: list, count: int) -> list:
    """Return `count` items from all over a list."""
    return [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]


class _Ours:
    """Our libraries of one network, as engines; what the budget refuses is a row with the error."""

    def __init__(self, network: Network, folder: Path, builder: Builder) -> None:
        self._network, self._folder, self._builder = network, folder, builder
        self.specs: list[EngineSpec] = []
        self.reports: list[str] = []
        self.refused: list[dict] = []

    def add(
        self, mode: str, precision: str, options: AdvancedOptions, max_drop: float | None = None
    ) -> DualLibrary | None:
        """Build one form and export it; None if it is refused. Exact floats are not judged."""
        network, exact = self._network, options.mode != "dual"
        drop = network.max_drop if max_drop is None else max_drop
        judged = {} if exact and precision == "fp32" else {"evaluate": network.evaluate, "max_drop": drop}
        try:
            library = self._builder.build(precision, options=options, **judged)
        except BudgetError as error:
            self.refused.append({"engine": "tvm_dual", "mode": mode, "precision": precision, "error": str(error)})
            return None
        self.specs.append(our_spec(library, self._folder / f"{network.name}_{mode}_{precision}.so", mode))
        if not exact:
            self.reports.append(str(library.report))
        return library


def _ours(network: Network, folder: Path, threads: int, progress: Progress) -> _Ours:
    given = {"streaming": True, "threads": threads, "progress": progress, "target": our_target()}
    ours = _Ours(network, folder, Builder(network.path, [network.calibration], **given))
    dense, floats = AdvancedOptions(mode="dense"), replace(network.options, little_kinds=_FLOATS)
    if network.quantized:
        ours.add("dense", "int8", dense)
        ours.add("dual", "int8", network.options)
    if our_bf16():
        ours.add("dense", "bf16", dense)
    ours.add("dense", "fp32", dense)
    ours.add("skip", "fp32", AdvancedOptions(mode="skip"))
    dual = ours.add("dual", "fp32", network.options)
    if dual and any(site.little == "copy" for site in dual.report.plan.sites):
        ours.add("floats", "fp32", floats)
    if network.counted is not None:
        ours.add("operations", "fp32", replace(floats, minimize="operations"), network.counted)
    return ours


def _measure(network: Network, specs, threads: int, turns: Turns, progress: Progress) -> list[dict]:
    with Harness(specs, threads, progress=progress) as harness:
        harness.measure(network.frames, rounds=turns.rounds, steps=turns.steps, warmup=1)
        parts = np.array_split(network.frames, -(-len(network.frames) // _AT_ONCE))
        found = harness.outputs({str(i): part for i, part in enumerate(parts)})
        outputs = [None if by_part is None else np.concatenate(list(by_part.values())) for by_part in found]
        rows = [{"network": network.name, **row} for row in harness.rows()]
    # ONNX Runtime computes the model as it was published.
    published = next(
        o for o, s in zip(outputs, specs, strict=True) if (s.engine, s.precision) == ("onnxruntime", "fp32")
    )
    return rows if published is None else with_quality(network, rows, outputs, published)


def with_quality(
    network: Network, rows: list[dict], outputs: list[np.ndarray | None], published: np.ndarray
) -> list[dict]:
    """Return rows with the ``quality`` of each engine's outputs, and whether that is ``same_quality``.

    Engines without outputs keep their rows as they are.
    """
    name, most = network.tolerance
    wanted, found = network.quality(published, published)[name], []
    for row, given in zip(rows, outputs, strict=True):
        numbers = {} if given is None else {"quality": network.quality(given, published)}
        same = {"same_quality": abs(numbers["quality"][name] - wanted) <= most} if numbers else {}
        found.append(row | numbers | same)
    return found
