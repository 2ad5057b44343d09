"""What a build finds in tuning logs: for each kernel the knobs of its own record, of a near one, or none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from schedules.cpu import ISAS
from schedules.families import FAMILIES, Workload, default_knobs
from schedules.knobs import Knobs
from tvm_dual.errors import DataError
from tvm_dual.plan import KernelChoice
from tvm_dual.tuning import records
from tvm_dual.tuning.manifest import SHIPPED, Manifest, read_manifest, this_cpu
from tvm_dual.tuning.records import Record
from tvm_dual.versions import FFI_VERSION, TVM_VERSION

#: The folder, where a build runs, that is looked for by default.
LOGS = Path("tuning_logs")
#: Extents of a near shape are within this factor.
NEAR = 2.0


@dataclass(frozen=True, eq=False)
class Log:
    """Verdicts of one folder.

    Attributes
    ----------
    name : str
        The folder's.
    cpu : str
        What they were measured on.
    verdicts : dict of Record
        The latest of each workload.
    """

    name: str
    cpu: str
    verdicts: dict[Workload, Record]


@dataclass(frozen=True, eq=False)
class Logs:
    """All that a build may use, and why other logs are refused.

    Attributes
    ----------
    logs : tuple of Log
    refused : tuple of str
    cpu : str
        LLVM's name of this machine's.
    """

    logs: tuple[Log, ...] = ()
    refused: tuple[str, ...] = ()
    cpu: str = ""

    def choose(self, workload: Workload) -> KernelChoice:
        """Return what is known of a kernel: its own record if there is one, else the nearest there is."""
        found = [
            (log, record, _distance(workload, record.workload)) for log in self.logs for record in log.verdicts.values()
        ]
        # Another CPU is farther than any near shape.
        ranked = sorted(
            ((log.cpu != self.cpu, distance, log, record) for log, record, distance in found if distance is not None),
            key=lambda each: each[:2],
        )
        if not ranked:
            why = "; ".join(self.refused) or "no record"
            return KernelChoice(str(workload), "default", asdict(default_knobs(workload)), why)
        foreign, distance, log, record = ranked[0]
        source = log.name
        if record.workload != workload:
            source = f"from {record.workload}, {source}"
        origin = "transferred" if foreign or distance else "tuned"
        return KernelChoice(str(workload), origin, record.knobs, source)


class Choices:
    """A history (`schedules.history`) that takes knobs from logs and notes what it gave.

    Attributes
    ----------
    made : dict of KernelChoice
        By workload.
    """

    def __init__(self, logs: Logs) -> None:
        """Choose from `logs`."""
        self._logs = logs
        self.made: dict[Workload, KernelChoice] = {}

    def knobs(self, workload: Workload) -> Knobs:
        """Return the knobs of a kernel."""
        if workload not in self.made:
            self.made[workload] = self._logs.choose(workload)
        return FAMILIES[workload.family].knobs(**self.made[workload].knobs)


def read_logs(logs: str | Path | None, isa: str) -> Logs:
    """Return the records for a level in a folder, or by default in `LOGS` and those that come with the project.

    Raises
    ------
    DataError
        If a folder is named that is not there.
    """
    if logs is not None and not Path(logs).is_dir():
        raise DataError(f"logs '{logs}': no such folder; accepted: one that tvm-dual tune wrote to")
    places = [Path(logs)] if logs is not None else [LOGS, SHIPPED]
    folders = dict.fromkeys(
        folder.resolve() for place in places if place.is_dir() for folder in sorted(place.iterdir())
    )
    return _sorted(ISAS[isa].records, [folder for folder in folders if (folder / records.FILE).is_file()])


def _sorted(isa: str, folders: Iterable[Path]) -> Logs:
    accepted, refused = [], []
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except DataError as error:
            refused.append(f"{folder.name} refused: {error}")
            continue
        if manifest.isa != isa:
            continue
        if manifest.versions != {"apache-tvm": TVM_VERSION, "apache-tvm-ffi": FFI_VERSION}:
            refused.append(f"{folder.name} refused: {_named(manifest)}")
            continue
        state = (folder / records.FILE).stat()
        accepted.append(Log(folder.name, manifest.cpu, _verdicts(folder, state.st_mtime_ns, state.st_size)))
    return Logs(tuple(accepted), tuple(refused), this_cpu())


@lru_cache(maxsize=16)
def _verdicts(folder: Path, _changed: int, _size: int) -> dict[Workload, Record]:
    """Return the latest verdict of each workload; a log of thousands of lines is read once, until it changes."""
    return {record.workload: record for record in records.read(folder) if record.verdict}


def _named(manifest: Manifest) -> str:
    return "measured with " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def _distance(workload: Workload, other: Workload) -> float | None:
    """Return how far a record's workload is from the wanted one, None if it is no use."""
    if (workload.family, workload.isa, workload.threads) != (other.family, other.isa, other.threads):
        return None
    total, exact = 0.0, FAMILIES[workload.family].exact
    for name, wanted in workload.extents.items():
        found = other.extents[name]
        if name in exact and wanted != found:
            return None
        step = abs(math.log((1 + wanted) / (1 + found)))
        if step > math.log(NEAR):
            return None
        total += step
    return total
