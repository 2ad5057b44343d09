"""What a folder of tuning records was measured on and with, and where such folders are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import tvm
from tvm import rpc

import schedules
from schedules.cpu import ISAS, cpu_flags, cpu_name
from tvm_dual.container import atomic_write
from tvm_dual.dataclass_values import from_dict
from tvm_dual.errors import DataError, LibraryError, PlanError
from tvm_dual.versions import FFI_VERSION, TVM_VERSION

FILE = "manifest.json"
MANIFEST_VERSION = 1
#: TVM's function that names a machine's CPU, on servers as well.
_SYSTEM_CPU = "target.llvm_get_system_cpu"
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
        LLVM's name of it: what is of the same name counts as the same CPU.
    model : str
        The vendor's name of it, LLVM's again if measured over RPC.
    features : tuple of str
        CPU flags; over RPC those that the level needs.
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
    model: str
    features: tuple[str, ...]
    caches: dict
    llvm: str
    versions: dict
    date: str
    version: int = MANIFEST_VERSION

    def folder(self, logs: Path) -> Path:
        """Return the folder of these records among `logs`."""
        return logs / f"{self.isa}-{self.cpu}-tvm-{self.versions['apache-tvm']}"

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


def make_manifest(isa: str, server: rpc.RPCSession | None = None) -> Manifest:
    """Return the manifest of records of a level, measured from today on, here or on a server."""
    versions = {"apache-tvm": TVM_VERSION, "apache-tvm-ffi": FFI_VERSION}
    llvm = str(tvm.get_global_func("target.llvm_version_major")())
    date = datetime.now(timezone.utc).date().isoformat()
    if server is None:
        return Manifest(isa, this_cpu(), cpu_name(), tuple(sorted(cpu_flags())), _caches(), llvm, versions, date)
    cpu = str(server.get_function(_SYSTEM_CPU)())
    return Manifest(isa, cpu, cpu, ISAS[isa].requires, {}, llvm, versions, date)


def this_cpu() -> str:
    """Return LLVM's name of this machine's CPU; of one with matrix tiles, that of the first that has them.

    Virtual machines may show the number of another CPU, by which LLVM goes.
    """
    return "sapphirerapids" if "amx_tile" in cpu_flags() else str(tvm.get_global_func(_SYSTEM_CPU)())


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
