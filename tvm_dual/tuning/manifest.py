"""What a folder of tuning records was measured on and with, and where such folders are."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import schedules
from schedules.cpu import cpu_flags, cpu_name
from tvm_dual.container import atomic_write
from tvm_dual.errors import DataError, LibraryError, PlanError
from tvm_dual.plan import from_dict
from tvm_dual.versions import FFI_VERSION, TVM_VERSION

FILE = "manifest.json"
MANIFEST_VERSION = 1
#: The logs that come with the project.
SHIPPED = Path(schedules.__file__).parent.parent / "tuning_logs"


@dataclass(frozen=True)
class Manifest:
    """What records of a folder have in common.

    Attributes
    ----------
    isa : str
        A key of `schedules.cpu.ISAS`.
    cpu : str
        Model name.
    features : tuple of str
        CPU flags.
    caches : dict of int
        Bytes by level, such as ``L2``; empty if measured over RPC.
    llvm : str
    versions : dict of str
        Of TVM and its ffi.
    date : str
        Of the first record.
    version : int
    """

    isa: str
    cpu: str
    features: tuple[str, ...]
    caches: dict
    llvm: str
    versions: dict
    date: str
    version: int = MANIFEST_VERSION

    def folder(self, logs: Path) -> Path:
        """Return the folder of these records among `logs`."""
        cpu = re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")
        return logs / f"{self.isa}-{cpu}-tvm-{self.versions['apache-tvm']}"

    def write(self, folder: Path) -> None:
        """Write it to a folder, made if it is not there.

        Raises
        ------
        DataError
            If the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / FILE, (json.dumps(asdict(self), indent=1) + "\n").encode())
        except (OSError, LibraryError) as error:
            raise DataError(f"logs '{folder}': cannot be written ({error}); accepted: a writable folder") from error


def make_manifest(isa: str, cpuinfo: str | None = None) -> Manifest:
    """Return the manifest of records of a level, measured from today on.

    Parameters
    ----------
    isa : str
    cpuinfo : str, optional
        The ``/proc/cpuinfo`` of the machine that measures, this one without it.
    """
    import tvm

    versions = {"apache-tvm": TVM_VERSION, "apache-tvm-ffi": FFI_VERSION}
    llvm = str(tvm.support.libinfo().get("LLVM_VERSION", "unknown"))
    date = datetime.now(timezone.utc).date().isoformat()
    if cpuinfo is None:
        return Manifest(isa, cpu_name(), tuple(sorted(cpu_flags())), _caches(), llvm, versions, date)
    features = tuple(sorted(_field(cpuinfo, "flags").split()))
    return Manifest(isa, _field(cpuinfo, "model name"), features, {}, llvm, versions, date)


def _field(cpuinfo: str, name: str) -> str:
    return next((line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith(name)), "unknown")


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises
    ------
    DataError
        If it is not there or is no manifest of this version.
    """
    path = folder / FILE
    try:
        return from_dict(Manifest, json.loads(path.read_text()))
    except (OSError, ValueError, PlanError) as error:
        raise DataError(f"'{path}': no manifest of tuning records ({error}); tune anew into another folder") from error


def _caches() -> dict[str, int]:
    """Return the first core's caches as Linux lists them."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size.removesuffix("K")) << 10
    return found
