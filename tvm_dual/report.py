"""What a build did, in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tvm_dual.plan import FineTuning, KernelChoice, Plan, SitePlan

_HEADER = ("site", "input", "state", "little module", "open rows", "bytes read", "why")


@dataclass(frozen=True)
class Report:
    """Per site and overall: form, density, bytes, time, quality. ``print`` it, or take `rows`."""

    plan: Plan

    def rows(self) -> list[dict]:
        """Return one dict per site."""
        return [asdict(site) for site in self.plan.sites]

    @property
    def density(self) -> float:
        """Open rows / all rows on the calibration data, rows counted by their weights; 1 without a gate."""
        total = sum(site.weight_bytes for site in self.plan.sites)
        return sum(site.density * site.weight_bytes for site in self.plan.sites) / total if total else 1.0

    @property
    def share_read(self) -> float:
        """Bytes of weights read per call, little modules included / bytes of all weights."""
        total = sum(site.weight_bytes for site in self.plan.sites)
        return self.bytes_read / total if total else 1.0

    @property
    def bytes_read(self) -> float:
        """Bytes of weights read per call, little modules included, mean over the calibration data."""
        return sum(site.bytes_read for site in self.plan.sites)

    @property
    def operations(self) -> float:
        """Multiply-adds per call, little modules included, mean over the calibration data."""
        return sum(site.operations for site in self.plan.sites)

    @property
    def all_operations(self) -> float:
        """Multiply-adds per call of the dense model."""
        return sum(site.all_operations for site in self.plan.sites)

    def __str__(self) -> str:
        """Return a table and a summary."""
        plan = self.plan
        table = [_HEADER]
        for site in plan.sites:
            little = _little(site)
            table.append(
                (
                    site.name,
                    site.input,
                    site.hidden or "-",
                    little,
                    f"{site.density:.0%}" if site.gated else "-",
                    f"{site.bytes_read / 1e3:.0f} of {site.weight_bytes / 1e3:.0f} kB",
                    site.reason,
                )
            )
        widths = [max(len(row[i]) for row in table) for i in range(len(_HEADER))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines += [
            "",
            f"{plan.precision}, {plan.isa}, {plan.threads} thread(s), calibrated on {plan.samples} calls",
            f"time per call: {plan.microseconds:.0f} us, dense {plan.dense_microseconds:.0f} us "
            f"({plan.dense_microseconds / plan.microseconds:.2f}x)",
            f"quality ({plan.quality_kind}): {plan.quality:.4g}, dense {plan.dense_quality:.4g}, "
            + ("no budget" if plan.max_drop == float("inf") else f"allowed drop {plan.max_drop:.4g}"),
            f"weights read per call: {self.bytes_read / 1e6:.2f} MB ({self.share_read:.0%})",
            f"multiply-adds per call: {self.operations / 1e6:.2f} M of {self.all_operations / 1e6:.2f} M",
        ]
        best = {}
        for trial in plan.trials:
            if trial.quality >= plan.dense_quality - plan.max_drop:
                best[trial.rule] = min(best.get(trial.rule, trial), trial, key=lambda t: t.microseconds)
        for rule, trial in best.items():
            lines.append(
                f"rule {rule}: {trial.density:.1%} of the gated rows open, {trial.microseconds:.0f} us, "
                f"quality {trial.quality:.4g}"
            )
        return "\n".join([*lines, *_finetuning_lines(plan.finetuning), *_kernel_lines(plan.kernels)])


def _little(site: SitePlan) -> str:
    """Say what a site's little module is."""
    if not site.little_bits:
        return "-"
    named = " ".join(part for part in (site.little.replace("projection", ""), site.projection) if part)
    size = f" {site.dimensions} x" if site.dimensions else ","
    return f"{named}{size} {site.little_bits} bit" + ", tuned" * site.tuned + f", {site.zeros} zero" * bool(site.zeros)


def _finetuning_lines(found: FineTuning | None) -> list[str]:
    """Say what fine-tuning changed."""
    if found is None:
        return []
    closed, tuned = found.closed_form, found.tuned
    lines = [
        f"fine-tuning, {found.steps} steps: {'used' if found.kept else 'not used'}; at one bound quality "
        f"{tuned.quality:.4g} ({tuned.density:.1%} open), closed form {closed.quality:.4g} ({closed.density:.1%} open)"
    ]
    if found.tuned_in_budget is not None:
        closed, tuned = (
            f"{trial.density:.1%} open, {trial.microseconds:.0f} us" if trial else "no bound meets it"
            for trial in (found.closed_form_in_budget, found.tuned_in_budget)
        )
        lines.append(f"within the budget: fine-tuned {tuned}; closed form {closed}")
    return lines


def _kernel_lines(kernels: Sequence[KernelChoice]) -> list[str]:
    """Say which kernels were tuned."""
    if not kernels:
        return []
    origins = [kernel.origin for kernel in kernels]
    counts = ", ".join(f"{origins.count(origin)} {origin}" for origin in dict.fromkeys(origins))
    return [
        f"kernels: {counts}",
        *(f"  {kernel.kernel}: {kernel.origin}" + f", {kernel.source}" * bool(kernel.source) for kernel in kernels),
    ]
