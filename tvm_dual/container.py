"""The file format: a shared library, followed by what describes it.

``ELF | arrays (npz) | metadata (JSON) | footer``. The dynamic loader ignores what follows the ELF
part, and the footer's hash makes a truncated or altered file a clear error instead of a crash,
before any of its code runs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
from pathlib import Path

import numpy as np

from tvm_dual.errors import DataError, LibraryError

_MAGIC = b"TVMDUAL\x01"
#: Lengths of the three parts, their SHA-256, the magic.
_FOOTER = struct.Struct("<QQQ32s8s")


def write_container(path: Path, binary: bytes, arrays: dict[str, np.ndarray], metadata: dict) -> None:
    """Write a library file; `path` appears only once it is complete."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    parts = [binary, buffer.getvalue(), json.dumps(metadata).encode()]
    digest = hashlib.sha256(b"".join(parts)).digest()
    footer = _FOOTER.pack(*map(len, parts), digest, _MAGIC)
    atomic_write(path, b"".join([*parts, footer]))


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to a temporary name in the same folder, then rename.

    Raises
    ------
    LibraryError
        If the folder is missing, or cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    except BaseException as error:  # also an interrupt
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise LibraryError(
            f"'{path}' cannot be written ({reason}); accepted: a file name in a folder that exists and is writable"
        ) from error


def refuse_unwritable(path: Path, option: str) -> None:
    """Check that a file can be written, before the long work that it is for.

    Raises
    ------
    DataError
        If `path` is a folder, or in none that exists and is writable.
    """
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
        raise DataError(
            f"{option} '{path}': cannot be written; accepted: a file in a folder that exists and is writable"
        )


def read_container(path: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Check a library file and return its metadata and arrays, without loading its code.

    Raises
    ------
    LibraryError
        If the file is missing, no library of this project, truncated or altered.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LibraryError(
            f"'{path}' cannot be read ({error.strerror}); accepted: a file from export_library"
        ) from error
    accepted = "accepted: a complete file from tvm_dual's export_library"
    if len(content) < _FOOTER.size or not content.endswith(_MAGIC):
        raise LibraryError(f"'{path}' is no tvm_dual library, or is cut short; {accepted}")
    *lengths, digest, _ = _FOOTER.unpack(content[-_FOOTER.size :])
    body = content[: -_FOOTER.size]
    if sum(lengths) != len(body) or hashlib.sha256(body).digest() != digest:
        raise LibraryError(f"'{path}' is damaged: its content does not match its checksum; {accepted}. Copy it anew")
    elf, packed, _ = lengths
    arrays = np.load(io.BytesIO(body[elf : elf + packed]))
    return json.loads(body[elf + packed :]), {name: arrays[name] for name in arrays.files}


def made_folder(dump: str | Path) -> Path:
    """Return the folder that the module is dumped to, made if it is not there; a DataError if it cannot be written."""
    folder = Path(dump)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise DataError(f"dump '{folder}': cannot be written; accepted: a folder, or a name for one")
    return folder
