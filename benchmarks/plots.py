"""Pictures of a suite's rows and of the sounds it made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.tables import described

_OURS, _PEER, _INK = "#e4572e", "#8d99ae", "#22262e"
_DPI = 150
_RANGE_DB = 80.0
_WINDOW_S = 0.032
#: Perplexities above this multiple of the least are cut off: what nobody would use would hide the rest.
_HIGHEST = 1.03


def latency_bars(rows: Sequence[dict[str, Any]], path: str | os.PathLike, title: str) -> None:
    """Draw the median latency of every row as a bar, fastest on top, with a whisker to p95.

    Parameters
    ----------
    rows : sequence of dict
        Rows of a suite; those with "error" are listed in a footnote.
    path : path-like
        Picture to write; the ending names the format.
    title : str
        Above the bars.
    """
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(rows)), layout="constrained", dpi=_DPI)
    _bars(figure.subplots(), rows, title)
    _save(figure, path)


def spectrograms(panels: Sequence[tuple[str, np.ndarray]], rate: int, path: str | os.PathLike) -> None:
    """Draw spectrograms side by side on one scale of decibels.

    Parameters
    ----------
    panels : sequence of (str, numpy.ndarray)
        Title and samples, shape (samples,).
    rate : int
        Samples per second.
    path : path-like
        Picture to write.
    """
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained", dpi=_DPI)
    _spectrograms(figure, figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, rate)
    _save(figure, path)


def demo_picture(
    rows: Sequence[dict[str, Any]], panels: Sequence[tuple[str, np.ndarray]], rate: int, path: str | os.PathLike
) -> None:
    """Draw the spectrograms (noisy, dense, dual) above the latency bars; parameters as above."""
    height = 1.4 + 0.36 * len(rows)
    figure = Figure(figsize=(12, 3.8 + height), layout="constrained", dpi=_DPI)
    above, below = figure.subfigures(2, 1, height_ratios=(3.8, height))
    _spectrograms(above, above.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, rate)
    _bars(below.subplots(), rows, "One frame, streaming")
    _save(figure, path)


def tradeoff(rows: Sequence[dict[str, Any]], path: str | os.PathLike, title: str) -> None:
    """Draw perplexity against time per step: a line per curve of a sweep, a point for the best of each other engine.

    Parameters
    ----------
    rows : sequence of dict
        Rows with "quality"; those with "curve" are joined. Sequences of several steps and failures are left out.
    path : path-like
        Picture to write.
    title : str
        Above the axes.
    """
    shown = [row for row in rows if "quality" in row and "sequence" not in row]
    figure = Figure(figsize=(10, 6.5), layout="constrained", dpi=_DPI)
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)
    curves: dict[str, list[tuple[float, float]]] = {}
    others: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(shown, key=lambda row: row["median_ms"]):
        if "curve" in row:
            curves.setdefault(row["curve"], []).append((row["median_ms"], row["quality"]["perplexity"]))
        else:
            # Of an engine's forms at one precision the fastest.
            others.setdefault((row["engine"], row["precision"]), row)
    for i, ((engine, precision), row) in enumerate(others.items()):
        own, place = engine == "tvm_dual", (row["median_ms"], row["quality"]["perplexity"])
        axes.plot(*place, "s" if own else "o", color=_OURS if own else _PEER, markersize=8)
        # Exact engines lie side by side at one perplexity: their names stand at different heights.
        line = {"arrowstyle": "-", "color": _PEER, "linewidth": 0.6}
        offset = {"xytext": (0, 26 + 15 * (i % 6)), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{engine} {precision}", place, fontsize=8, color=_INK, arrowprops=line, **offset)
    for name, places in curves.items():
        marker = {"marker": "." if len(places) > 1 else "D", "markersize": 7}
        axes.plot(*zip(*places, strict=True), linewidth=1.5, label=name, **marker)
    values = [row["quality"]["perplexity"] for row in shown]
    if values and max(values) > _HIGHEST * min(values):
        axes.set_ylim(min(values) - 0.1 * (_HIGHEST - 1) * min(values), _HIGHEST * min(values))
    axes.set_xscale("log")
    axes.set_xlabel("median milliseconds per step", color=_INK)
    axes.set_ylabel("perplexity", color=_INK)
    axes.set_title(title, loc="left", color=_INK, fontweight="bold")
    axes.grid(color="#d9dde5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def _bars(axes: Axes, rows: Sequence[dict[str, Any]], title: str) -> None:
    timed = sorted((row for row in rows if "error" not in row), key=lambda row: row["median_ms"])
    medians = np.array([row["median_ms"] for row in timed])
    tails = np.maximum(np.array([row["p95_ms"] for row in timed]) - medians, 0)
    ours = [row["engine"] == "tvm_dual" for row in timed]
    places = np.arange(len(timed))
    axes.barh(places, medians, height=0.68, color=[_OURS if own else _PEER for own in ours])
    axes.errorbar(medians, places, xerr=[np.zeros_like(tails), tails], fmt="none", ecolor=_INK, elinewidth=1, capsize=3)
    for place, median, tail, own in zip(places, medians, tails, ours, strict=False):
        axes.annotate(
            f"{median:.3f}", (median + tail, place), xytext=(6, 0), textcoords="offset points", va="center",
            color=_OURS if own else _INK, fontweight="bold" if own else "normal",
        )  # fmt: skip
    axes.set_yticks(places, [_name(row) for row in timed])
    for label, own in zip(axes.get_yticklabels(), ours, strict=False):
        label.set(color=_OURS if own else _INK, fontweight="bold" if own else "normal")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    failed = ", ".join(_name(row) for row in rows if "error" in row)
    axes.set_xlabel(
        "median milliseconds, whisker to p95" + (f"  (did not run: {failed})" if failed else ""), color=_INK
    )
    axes.set_title(title, loc="left", color=_INK, fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#d9dde5", linewidth=0.8)
    axes.set_axisbelow(True)


def _name(row: dict[str, Any]) -> str:
    mode = "" if row["mode"] == "dense" and row["engine"] != "tvm_dual" else f" {row['mode']}"
    return f"{described(row)}{mode} {row['precision']}"


def _spectrograms(figure: Any, axes: Sequence[Axes], panels: Sequence[tuple[str, np.ndarray]], rate: int) -> None:
    levels = [_decibels(wave, rate) for _, wave in panels]
    top = max(level.max() for level in levels)
    image = None
    for place, ((title, wave), level) in enumerate(zip(panels, levels, strict=False)):
        extent = (0, len(wave) / rate, 0, rate / 2000)
        image = axes[place].imshow(
            level.T, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - _RANGE_DB, vmax=top,
            interpolation="bilinear",
        )  # fmt: skip
        axes[place].set_title(title, loc="left", color=_INK, fontweight="bold")
        axes[place].set_xlabel("seconds", color=_INK)
    axes[0].set_ylabel("kHz", color=_INK)
    figure.colorbar(image, ax=list(axes), label="dB", pad=0.01)


def _decibels(wave: np.ndarray, rate: int) -> np.ndarray:
    """Power of a wave (samples,) in decibels, (frames, bins)."""
    length = min(int(rate * _WINDOW_S), len(wave))
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, np.float64), length)[:: max(length // 4, 1)]
    power = np.abs(np.fft.rfft(frames * np.hanning(length))) ** 2
    return 10 * np.log10(power + 1e-10)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI)
