"""Tables of a suite's rows, for people."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm_dual.library import DualLibrary

LOW = ("int8", "bf16")


def fastest(
    rows: list[dict], precisions: tuple[str, ...], ours: bool, mode: str | None = None, sequence: int = 1
) -> dict | None:
    """Return the fastest measured row of the given precisions, ours or the peers'; None if there is none.

    Rows with threads of their own are left out.
    """
    found = [
        row
        for row in rows
        if row.get("median_ms") and (row["engine"] == "tvm_dual") == ours and row["precision"] in precisions
        and mode in (None, row["mode"]) and row.get("sequence", 1) == sequence and "threads" not in row
    ]  # fmt: skip
    return min(found, key=lambda row: row["median_ms"], default=None)


def ratios(rows: list[dict]) -> dict[str, float]:
    """Return the figures that matter of the streaming rows: how many times slower the first is than the second."""
    dual, dual_low = fastest(rows, ("fp32", *LOW), True, "dual"), fastest(rows, LOW, True, "dual")
    dense32, dense8 = fastest(rows, ("fp32",), True, "dense"), fastest(rows, ("int8",), True, "dense")
    peer32, peer_low = fastest(rows, ("fp32",), False), fastest(rows, LOW, False)

    def ratio(slow: dict | None, fast: dict | None) -> float:
        return slow["median_ms"] / fast["median_ms"] if slow and fast else math.nan

    return {
        "fastest fp32 peer / dual": ratio(peer32, dual),
        "fastest int8 or bf16 peer / dual": ratio(peer_low, dual_low),
        "our dense int8 / dual int8": ratio(dense8, dual_low),
        "fastest fp32 peer / our dense fp32": ratio(peer32, dense32),
        "p95 / median of dual": _spread(dual),
    }


def _spread(row: dict | None) -> float:
    """Return the 95th percentile / the median, within a round: a shared machine's speed changes between rounds."""
    if row is None:
        return math.nan
    return statistics.median(high / middle for high, middle in zip(row["rounds_p95_ms"], row["rounds_ms"], strict=True))


def summary(rows: list[dict]) -> list[str]:
    """Return one line per figure."""
    lines = [f"{name}: {value:.2f}" for name, value in ratios(rows).items()]
    dual = fastest(rows, ("fp32", *LOW), True, "dual")
    if dual and "resident_mb" in dual:
        lines.append(f"loading, first frame included: {dual['load_seconds']:.2f} s, {dual['resident_mb']:.0f} MB")
    return lines


def print_points(rows: list[dict]) -> None:
    """Print the points of a sweep, curve by curve; speed is against our dense row of the same precision."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("curve", "little module"):
        table.add_column(heading)
    for heading in ("closed", "median ms", "speed", "perplexity", "change %", "MB read"):
        table.add_column(heading, justify="right")
    for row in (row for row in rows if "curve" in row and "quality" in row):
        dense = fastest(rows, (row["precision"],), True, "dense")
        little = f"{row['projection']} {row['dimensions']} x {row['little_bits']} bit"
        numbers = (row["closed"], row["median_ms"], dense["median_ms"] / row["median_ms"] if dense else math.nan)
        quality = (row["quality"]["perplexity"], row["quality"]["change_percent"], row["weight_bytes_read"] / 1e6)
        cells = [f"{value:{form}}" for value, form in zip(numbers, (".0%", ".3f", ".2f"), strict=True)]
        table.add_row(row["curve"], little, *cells, *(f"{value:.2f}" for value in quality))
    Console(width=150).print(table)


def described(row: dict) -> str:
    """Return the engine's name, with what tells its rows apart."""
    details = [row[name] for name in ("form", "weight_scales") if name in row]
    if "threads" in row:
        details.append(f"{row['threads']} threads")
    return row["engine"] + (f" ({', '.join(details)})" if details else "")


def print_result(rows: list[dict], library: DualLibrary, heading: str = "") -> None:
    """Print a library's report, all rows, and the figures that matter."""
    print(library.report)
    if heading:
        print(heading)
    print_rows(rows)
    for line in summary(rows):
        print(line)


def print_rows(rows: list[dict]) -> None:
    """Print a table, fastest first; engines that failed come last with their error."""
    from rich.console import Console
    from rich.table import Table

    names = sorted({key for row in rows for key in row.get("quality", {}) if "/" not in key}, reverse=True)
    table = Table()
    for heading in ("engine", "mode", "precision"):
        table.add_column(heading)
    sequences = ["steps a call"] * any("sequence" in row for row in rows)
    for heading in (*sequences, "median ms", "p95 ms", *names, "MB read"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: row.get("median_ms", math.inf)):
        ours = row["engine"] == "tvm_dual"
        first = [described(row), row["mode"], row["precision"], *(str(row.get("sequence", 1)) for _ in sequences)]
        if "error" in row:
            cells = [*first, "-", "-", row["error"]]
        else:
            quality = [f"{row['quality'][n]:.3f}" if n in row.get("quality", {}) else "-" for n in names]
            read = f"{row['weight_bytes_read'] / 1e6:.2f}" if "weight_bytes_read" in row else "-"
            cells = [*first, f"{row['median_ms']:.3f}", f"{row['p95_ms']:.3f}", *quality, read]
        table.add_row(*cells, style="bold green" if ours and row["mode"] == "dual" else None)
    Console(width=150).print(table)
