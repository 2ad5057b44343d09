"""The versions the compiler half works with, checked before its first use."""

from __future__ import annotations

import importlib.metadata
import shutil

from tvm_dual.errors import SetupError

#: Of tvm_dual itself.
VERSION = "0.1.0"
TVM_VERSION = "0.27.0.post1"
#: Newer builds of the foreign function interface crash this TVM (apache/tvm#20094).
FFI_VERSION = "0.1.14.post1"


def check_compiler() -> None:
    """Check that the TVM and ffi packages are the ones this project works with.

    Raises
    ------
    SetupError
        Naming what is installed and the command that mends it.
    """
    wanted = {"apache-tvm": TVM_VERSION, "apache-tvm-ffi": FFI_VERSION}
    found = {}
    for package in wanted:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    if found != wanted:
        have = ", ".join(f"{name} {version}" for name, version in found.items())
        need = " ".join(f"{name}=={version}" for name, version in wanted.items())
        raise SetupError(f"tvm_dual's compiler works with exactly one TVM; found {have}. Run: pip install {need}")


def check_linker() -> None:
    """Check that a C++ compiler is there to link the library with.

    Raises
    ------
    SetupError
        If neither ``g++`` nor ``clang++`` is on the path.
    """
    if not (shutil.which("g++") or shutil.which("clang++")):
        raise SetupError(
            "export_library links with a C++ compiler; found neither g++ nor clang++ on PATH. "
            "Install one (Debian: apt-get install g++), or export on a machine that has it"
        )
