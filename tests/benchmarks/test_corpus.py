"""The corpus: split, tokens, vocabulary, and what is said of anything else."""

import tarfile

import numpy as np
import pytest

from benchmarks import corpus
from benchmarks.corpus import END, UNKNOWN, Corpus, numbers, read_corpus, split, tokens, vocabulary
from tvm_dual.errors import DataError

TEXT = "\n\tThe/at 1/2/cd Dog/nn\n   \nran/vbd ./.\n"


def names():
    """Return as many names as the corpus has texts, in its order."""
    return [f"c{part}{number:02}" for part in "abcdefgjkl" for number in range(1, 51)]


@pytest.fixture
def folder(tmp_path):
    """Return a folder with 500 texts of one word each, the text's own name, and files beside them."""
    place = tmp_path / "package"
    place.mkdir()
    for name in names():
        (place / name).write_text(f"{name}/nn\n")
    (place / "README").write_text("BROWN CORPUS")
    return place


def test_words_lose_their_last_tag_and_lines_end():
    assert tokens(TEXT, "ca01") == ["the", "1/2", "dog", END, "ran", ".", END]


@pytest.mark.parametrize("word", ["dog", "/nn"])
def test_a_word_without_a_tag_is_named(word):
    with pytest.raises(DataError, match=f"'ca07', line 2: '{word}'"):
        tokens(f"The/at\nold/jj {word}\n", "ca07")


def test_the_ninth_of_ten_validates_and_the_tenth_tests():
    parts = split([[str(i)] for i in range(23)])
    assert parts.valid == ("8", "18") and parts.test == ("9", "19")
    assert parts.train == tuple(str(i) for i in range(23) if i not in (8, 9, 18, 19))


def test_vocabulary_is_by_frequency_then_by_first_place():
    vocab = vocabulary(["b", "a", "c", "c", "a", "b", "d", "c"], size=4)
    assert vocab == [UNKNOWN, "c", "b", "a"]
    found = numbers(["a", "d", "c"], vocab)
    assert found.dtype == np.int64 and found.tolist() == [3, 0, 1]


def test_folder_and_archive_are_the_same_in_order(folder, tmp_path):
    archive = tmp_path / "corpus.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, "package")
    found = read_corpus(folder)
    assert isinstance(found, Corpus) and found == read_corpus(archive)
    words = names()
    assert found.valid[::2] == tuple(words[8::10]) and found.test[::2] == tuple(words[9::10])
    assert found.train[:4] == (words[0], END, words[1], END)


def test_a_missing_text_is_noticed(folder):
    (folder / "ca03").unlink()
    with pytest.raises(DataError, match="499 texts"):
        read_corpus(folder)


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8b\x08\x00 broken"])
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tgz"):
        read_corpus(tmp_path / "a.tgz")


def test_an_absent_corpus_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "DEFAULT", tmp_path / "absent.tgz")
    with pytest.raises(DataError, match="make corpus"):
        read_corpus()
    with pytest.raises(DataError, match="elsewhere"):
        read_corpus(tmp_path / "elsewhere")


def test_counts_of_the_real_one():
    if not corpus.DEFAULT.exists():
        pytest.skip("the corpus has not been fetched: make corpus")
    found = read_corpus()
    assert [len(part) for part in (found.train, found.valid, found.test)] == [975_903, 121_184, 121_445]
    assert vocabulary(found.train)[:6] == [UNKNOWN, "the", ",", END, ".", "of"]
