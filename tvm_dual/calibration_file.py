"""Calibration data from a file, for the command line."""

from __future__ import annotations

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from tvm_dual.errors import DataError

ACCEPTED = "a .npz file (numpy.savez), one array per stream; STREAM/INPUT names those of a model with several inputs"


def read_calibration(path: str | Path) -> list[np.ndarray | dict[str, np.ndarray]]:
    """Return the streams of a .npz file, as `tvm_dual.calibration.check_calibration` takes them.

    An array called ``STREAM/INPUT``, such as ``0/x`` or ``0/h0``, is one input of a stream; any other is a stream. They
    stand in the file's order.

    Raises
    ------
    DataError
        If the file cannot be read, or holds Python objects.
    """
    try:
        loaded = np.load(path)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"calibration '{path}': holds a single array without a name; accepted: {ACCEPTED}")
        with loaded as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except ValueError as error:
        # What numpy takes for a pickle it advises to load unsafely.
        raise DataError(f"calibration '{path}': cannot be read as arrays of numbers; accepted: {ACCEPTED}") from error
    except (OSError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(f"calibration '{path}': cannot be read ({error}); accepted: {ACCEPTED}") from error
    streams: dict[str, np.ndarray | dict[str, np.ndarray]] = {}
    for name, array in found.items():
        stream, slash, given = name.partition("/")
        if slash:
            streams.setdefault(f"{stream}/", {})[given] = array
        else:
            streams[name] = array
    return list(streams.values())
