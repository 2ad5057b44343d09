"""The suite word-lm-sweep: speed and perplexity by share of closed rows, rule, projection and little precision.

The table of dual-module inference (Liu et al., ICML 2020) for our kernels, with the peers in the same run. Thresholds
are set to reach a share of closed rows on the calibration text; perplexity is that of the test text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import word_lm
from benchmarks.harness import EngineSpec
from benchmarks.ours import our_spec
from benchmarks.plots import tradeoff
from benchmarks.reading import Reading
from benchmarks.tables import print_points, print_rows
from benchmarks.word_lm import FILES, Form, Progress, Size, all_peers, load, make_builder, measure, our_specs
from schedules.cpu import ISAS
from tvm_dual.builder import Builder
from tvm_dual.cost import bytes_read
from tvm_dual.errors import PlanError
from tvm_dual.forms import exact_form
from tvm_dual.gates import FAR
from tvm_dual.little import LITTLE_BITS
from tvm_dual.options import AdvancedOptions
from tvm_dual.plan import Plan
from tvm_dual.search import limit_at_share, share_open
from tvm_dual.variants import Fits

__all__ = ["FILES", "FULL", "NAME", "SHORT", "run", "show"]

NAME = "word-lm-sweep"
# Half a hundred engines: less of each than in the suite that measures a dozen.
FULL = replace(word_lm.FULL, rounds=6, steps=70, evaluation=(32, 115))
SHORT = replace(word_lm.SHORT, exact_peers=True, evaluation=(32, 60))
#: Shares of closed rows: the paper's, and little modules alone.
SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
#: The share at which projections and precisions are compared.
HALF = 0.5
#: The paper's projections, by its error bound.
EPSILONS = (0.3, 0.5, 0.7)
#: Sizes of little modules alone, as shares of what they read: static low-rank models, up to half the weights.
SIZES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
#: Shares of closed rows of trained little modules, and the one at which they are trained.
TRAINED_SHARES, TRAINED_AT = (0.8, 0.85, 0.9, 0.95, 0.97, 1.0), 0.93
#: Size of a little module that is trained without a gate: twice the default.
TRAINED_SIZE = 1 / 4


@dataclass(frozen=True)
class Curve:
    """One library with a gate, at several shares of closed rows."""

    name: str
    precision: str
    rule: str
    options: AdvancedOptions
    shares: tuple[float, ...]
    trained: bool = False


@dataclass(frozen=True, eq=False)
class Result:
    """Rows in DESIGN's JSON form; a sweep's have "curve", "closed", "rule" and the little module's size beside."""

    rows: list[dict]


def run(
    threads: int, size: Size, progress: Progress, checkpoint: Path | None = None, corpus: Path | None = None
) -> Result:
    """Build every curve's library, set its thresholds, and measure all of them with the peers; see `word_lm.run`.

    Raises
    ------
    TvmDualError
        As `word_lm.run` does, and if no gated kernel applies to the model's layer.
    """
    model, text = load(checkpoint, corpus)
    with tempfile.TemporaryDirectory(prefix="word-lm-sweep-") as scratch:
        folder = Path(scratch)
        builder = make_builder(model, text, threads, size, progress)
        exact = {
            Form(mode, precision): builder.build(precision, options=replace(size.options, mode=mode))
            for mode, precision in (("dense", "fp32"), ("dense", "int8"))
        }
        specs, facts = our_specs(exact, folder), [{} for _ in exact]
        plan = exact[Form("dense", "int8")].report.plan
        all_curves = curves(size.options)
        for done, curve in enumerate(all_curves):
            progress("curves", done, len(all_curves))
            for spec, found in points(curve, builder, plan, threads, folder / f"curve{done}", progress):
                specs.append(spec)
                facts.append(found)
        alone = [*little_alone(builder, size.options, folder)]
        if size.options.finetune_steps:
            alone.append(trained_alone(builder, size.options, plan, folder, progress))
        specs += [spec for spec, _ in alone]
        facts += [found for _, found in alone]
        specs += [spec for spec in all_peers(model, threads, folder) if spec.sequence == 1]
        facts += [{} for _ in specs[len(facts) :]]
        reading = Reading(model, text.test, *size.evaluation)
        rows = measure(specs, threads, size, reading, progress)
        return Result([row if "error" in row else {**row, **found} for row, found in zip(rows, facts, strict=True)])


def show(result: Result, path: Path) -> None:
    """Print the table of all points, and draw perplexity against speed beside the file `path`."""
    print_points(result.rows)
    print_rows([row for row in result.rows if "curve" not in row])
    picture = path.with_suffix(".png")
    tradeoff(result.rows, picture, "Recurrent layer of a word model, word by word")
    print(f"wrote {picture}")


def curves(options: AdvancedOptions) -> list[Curve]:
    """Return what is swept, for the little module of `options`."""
    found = [
        Curve(f"{rule} {precision}", precision, rule, options, SHARES)
        for precision in ("fp32", "int8")
        for rule in ("damage", "activation")
    ]
    for epsilon in EPSILONS:
        paper = replace(options, projection="random", epsilon=epsilon)
        # The paper's own form is the one that has a whole curve.
        shares = SHARES if epsilon == 0.5 else (HALF,)
        found.append(Curve(f"paper, random {epsilon} fp32", "fp32", "activation", paper, shares))
    coarse = replace(options, projection="random", epsilon=0.5, little_bits=2)
    found.append(Curve("paper, random 0.5, 2 bit fp32", "fp32", "activation", coarse, (HALF,)))
    for bits in LITTLE_BITS:
        little = replace(options, little_bits=bits)
        found.append(Curve(f"little {bits} bit int8", "int8", "damage", little, (HALF, 1.0)))
    if options.finetune_steps:
        found.append(Curve("damage int8, trained", "int8", "damage", options, TRAINED_SHARES, trained=True))
    return found


def points(
    curve: Curve, builder: Builder, plan: Plan, threads: int, folder: Path, progress: Progress
) -> Iterator[tuple[EngineSpec, dict]]:
    """Build a curve's library; yield an engine for each of its shares, and what its row should say.

    Parameters
    ----------
    curve : Curve
    builder : Builder
    plan : Plan
        Of the dense library; travels in the one built here, whose thresholds come from files of their own.
    threads : int
    folder : Path
        Made here; receives the library and the thresholds.
    progress : callable
        Of the training of a trained curve's little module.

    Raises
    ------
    PlanError
        If no gated kernel applies to the model.
    """
    model = builder.model(curve.precision, curve.options)
    (site,) = (*model.sites.values(), *model.left)
    if not site.can_gate:
        raise PlanError(f"sweep: the model's layer is of kind {site.kind}; accepted: a kind with a gated kernel")
    forms = tuple("rows" if part == "dense" else part for part in exact_form(site, False))
    fits = Fits(model)
    variant = fits.variant({site.name: forms}, curve.rule, 0.0, plan)
    if curve.trained and fits.finetune({site.name: forms}, limit_at_share(variant, TRAINED_AT), progress):
        variant = fits.variant({site.name: forms}, curve.rule, 0.0, plan)
    little = variant.fits[site.name].little
    isa = ISAS[model.compiler.isa]
    folder.mkdir()
    path = variant.library.export_library(folder / "library.so")
    for share in curve.shares:
        limit = limit_at_share(variant, share) if share else 0.0
        tables = variant.thresholds(limit, effort=1.0 if share else float("inf"))
        variant.library.set_thresholds(tables)
        density = share_open(variant)
        tables_path = folder / f"closed{share}.npz"
        np.savez(tables_path, **tables)
        arguments = {"model_path": str(path), "precision": curve.precision, "threads": threads}
        arguments["thresholds"] = str(tables_path)
        facts = {
            "curve": curve.name,
            "closed": 1 - density,
            "rule": curve.rule,
            "limit": limit,
            "density": density,
            "projection": curve.options.projection,
            "dimensions": little.module.weight.shape[1],
            "little_bits": little.module.bits,
            "weight_bytes_read": round(
                bytes_read(site, forms, curve.precision, density, model.observations[site.name], little, isa)
            ),
        }
        yield EngineSpec("tvm_dual", "dual", curve.precision, "benchmarks.ours:deployed", arguments), facts


def little_alone(builder: Builder, options: AdvancedOptions, folder: Path) -> Iterator[tuple[EngineSpec, dict]]:
    """Build little modules of several sizes without gates; yield what `points` does."""
    for share in SIZES:
        library = builder.build("int8", options=replace(options, mode="little", dimension_share=share))
        (site,) = library.report.plan.sites
        facts = {"curve": "little alone", "closed": 1.0, "projection": site.projection}
        facts |= {"dimensions": site.dimensions, "little_bits": site.little_bits}
        yield our_spec(library, folder / f"little{share}.so", "little"), facts


def trained_alone(
    builder: Builder, options: AdvancedOptions, plan: Plan, folder: Path, progress: Progress
) -> tuple[EngineSpec, dict]:
    """Train a little module that stands alone, a static low-rank model fine-tuned; return what `points` yields."""
    model = builder.model("int8", replace(options, dimension_share=TRAINED_SIZE))
    (name,) = model.sites
    fits, forms = Fits(model), {name: ("little", "little")}
    fits.finetune(forms, FAR, progress)
    variant = fits.variant(forms, plan=plan)
    little = variant.fits[name].little.module
    facts = {"curve": "little alone, trained", "closed": 1.0, "projection": options.projection}
    facts |= {"dimensions": little.weight.shape[1], "little_bits": little.bits}
    return our_spec(variant.library, folder / "trained_alone.so", "little"), facts
