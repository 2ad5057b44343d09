"""What a log says: a table from default to tuned, and how the best time came down with the trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from schedules.families import Workload, default_knobs
from tvm_dual.errors import DataError
from tvm_dual.tuning import records
from tvm_dual.tuning.records import Record

#: Picture in the log's folder.
PICTURE = "curves.png"


@dataclass(frozen=True, eq=False)
class Curve:
    """What became of one kernel.

    Attributes
    ----------
    workload : Workload
    best : list of float
        Best time so far, relative to the default's, after each trial.
    failed : int
    verdict : Record or None
    """

    workload: Workload
    best: list[float]
    failed: int
    verdict: Record | None


def curves(found: Sequence[Record]) -> list[Curve]:
    """Return one curve for each kernel of a log."""
    by_workload: dict[Workload, list[Record]] = {}
    for record in found:
        by_workload.setdefault(record.workload, []).append(record)
    return [_curve(workload, listed) for workload, listed in by_workload.items()]


def _curve(workload: Workload, listed: list[Record]) -> Curve:
    trials = [record for record in listed if not record.verdict]
    verdicts = [record for record in listed if record.verdict]
    best = np.minimum.accumulate([record.ratio for record in trials]) if trials else np.array([])
    return Curve(workload, best.tolist(), sum(bool(r.error) for r in trials), verdicts[-1] if verdicts else None)


def report(folder: Path) -> str:
    """Return the table of a folder's log, and draw its curves into `PICTURE` there.

    Raises
    ------
    DataError
        If there is no log.
    """
    found = curves(records.read(folder))
    if not found:
        raise DataError(f"'{folder}': no tuning records; accepted: a folder that tvm-dual tune wrote to")
    _draw(found, folder / PICTURE)
    decided = [curve for curve in found if curve.verdict]
    rows = [("kernel", "density", "trials", "failed", "default us", "tuned us", "speed-up", "knobs")]
    rows += [_row(curve) for curve in decided]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    ratios = [curve.verdict.ratio for curve in decided]
    trials, failed = sum(len(curve.best) for curve in found), sum(curve.failed for curve in found)
    lines.append(f"{len(decided)} of {len(found)} kernels decided; {trials - failed} of {trials} candidates valid")
    if ratios:
        lines.append(f"speed-up, geometric mean: {1 / np.exp(np.mean(np.log(ratios))):.3f}")
    return "\n".join([*lines, f"curves: {folder / PICTURE}"])


def _row(curve: Curve) -> tuple[str, ...]:
    verdict = curve.verdict
    stays = verdict.chosen == default_knobs(verdict.workload)
    knobs = ", ".join(f"{name} {value}" for name, value in asdict(verdict.chosen).items())
    return (
        str(curve.workload),
        f"{verdict.density:.3f}",
        str(len(curve.best)),
        str(curve.failed),
        f"{verdict.default_seconds * 1e6:.2f}",
        f"{verdict.seconds * 1e6:.2f}",
        f"{1 / verdict.ratio:.3f}",
        "default" if stays else knobs,
    )


def _draw(found: Sequence[Curve], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for curve in found:
        valid = [(i + 1, best) for i, best in enumerate(curve.best) if math.isfinite(best)]
        if valid:
            axes.step(*zip(*valid, strict=True), where="post", linewidth=1, label=str(curve.workload))
    axes.set(xlabel="trials", ylabel="best time so far / default")
    axes.axhline(1, color="grey", linewidth=0.5)
    if len(found) <= 12:
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
