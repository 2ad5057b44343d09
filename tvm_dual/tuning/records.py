"""The log of tuning: one line of JSON for each measured candidate and each verdict, appended as they come.

Lines are appended whole under a lock, so that two tuners can share a folder, and an interrupt loses nothing. A line
that cannot be read is skipped with a warning that names it.
"""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from schedules.families import FAMILIES, Workload
from schedules.knobs import Knobs
from tvm_dual.dataclass_values import from_dict
from tvm_dual.errors import DataError, PlanError

FILE = "records.jsonl"
#: What went wrong, for people.
FAILURES = "failures.log"


@dataclass(frozen=True)
class Record:
    """A candidate that was measured, or a verdict: the finalist that won head to head against the default.

    Attributes
    ----------
    workload : Workload
    knobs : dict of int
    seconds : float
        Typical time of a call; 0 if it failed.
    default_seconds : float
        That of the default knobs, measured in turns with it; 0 if that failed.
    noise : float
        How far its rounds differ, relative.
    time : str
        When, ISO 8601 in UTC.
    density : float
        Share of open rows or nonzero inputs that it was measured at.
    vectors : int
        Vectors of a call.
    error : str
        Why it failed, else "".
    verdict : bool
    seed : int
    """

    workload: Workload
    knobs: dict
    seconds: float
    default_seconds: float
    noise: float
    time: str
    density: float = 1.0
    vectors: int = 1
    error: str = ""
    verdict: bool = False
    seed: int = 0

    @property
    def chosen(self) -> Knobs:
        """The knobs as their family's dataclass."""
        return FAMILIES[self.workload.family].knobs(**self.knobs)

    @property
    def ratio(self) -> float:
        """Time relative to the default's; infinite for a candidate that failed."""
        return self.seconds / self.default_seconds if self.seconds and self.default_seconds else float("inf")


def append(folder: Path, records: list[Record]) -> None:
    """Append records to a folder's log, and those of candidates that failed to `FAILURES` as well.

    Raises
    ------
    DataError
        If the log cannot be written, such as on a full disk; what it held stays.
    """
    _append(folder / FILE, "".join(_line(record) for record in records))
    failed = [f"{r.time} {r.workload} {r.knobs}\n{r.error}\n\n" for r in records if r.error]
    if failed:
        _append(folder / FAILURES, "".join(failed))


def _line(record: Record) -> str:
    """Return a record as JSON without spaces."""
    return json.dumps(_told(record), separators=(",", ":")) + "\n"


def _told(value):
    """Return a dataclass as a dict, without fields that are as by default: there are thousands of lines."""
    if not is_dataclass(value):
        return value
    return {f.name: _told(given) for f in fields(value) if (given := getattr(value, f.name)) != f.default}


def _append(path: Path, text: str) -> None:
    content = text.encode()
    try:
        # With a buffer, what a full disk did not take would be tried again as the file is closed.
        with path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = os.fstat(file.fileno()).st_size
            try:
                # After a line that was cut short, on a line of its own.
                left = content if not end or _ends_whole(path) else b"\n" + content
                while left:
                    left = left[file.write(left) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), end)
                raise
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be written ({error.strerror}); accepted: a folder with room that is writable. "
            "What was recorded before is kept; run the same command again to go on"
        ) from error


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


class Log:
    """A folder's log, each line of which is read once: logs have thousands, and grow while kernels are tuned."""

    def __init__(self, folder: Path) -> None:
        """Read nothing yet."""
        self._path = folder / FILE
        self._forget()

    def _forget(self) -> None:
        self._size, self._lines, self._found, self._tail = 0, 0, {}, []

    def of(self, workload: Workload) -> list[Record]:
        """Return a workload's records, in order, those among them that others have appended meanwhile.

        Raises
        ------
        DataError
            If the log is there but cannot be opened.
        """
        self._read()
        return [*self._found.get(workload, []), *(record for record in self._tail if record.workload == workload)]

    def _read(self) -> None:
        try:
            size = self._path.stat().st_size if self._path.exists() else 0
            if size < self._size:
                self._forget()
            if size == self._size:
                self._tail = []
                return
            with self._path.open("rb") as file:
                file.seek(self._size)
                text = file.read()
        except OSError as error:
            raise _unreadable(self._path, error) from error
        whole = text[: text.rfind(b"\n") + 1]
        for record in _parsed(self._path, whole, self._lines):
            self._found.setdefault(record.workload, []).append(record)
        self._size += len(whole)
        self._lines += whole.count(b"\n")
        # A last line without its end may still get one: it is read again.
        self._tail = list(_parsed(self._path, text[len(whole) :], self._lines))


def read(folder: Path) -> list[Record]:
    """Return the records of a folder's log, in order; lines that cannot be read are skipped with a warning.

    Raises
    ------
    DataError
        If the log is there but cannot be opened.
    """
    path = folder / FILE
    try:
        text = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise _unreadable(path, error) from error
    return list(_parsed(path, text, 0))


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"'{path}' cannot be read ({error.strerror}); accepted: a log of tvm-dual tune")


def _parsed(path: Path, text: bytes, before: int) -> Iterator[Record]:
    """Yield the records of lines that come behind as many as `before`."""
    for number, line in enumerate(text.splitlines(), before + 1):
        if not line.strip():
            continue
        try:
            record = from_dict(Record, json.loads(line))
            # What names no template of today's, or other knobs, is as useless as half a line.
            _ = record.chosen, record.workload.extents, record.workload.level
        except (ValueError, KeyError, TypeError, PlanError) as error:
            warnings.warn(f"{path}, line {number}: skipped, no record of this version ({error})", stacklevel=3)
            continue
        yield record
