"""The speech data: clips of every condition, parts that share nothing."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.audio import mixing
from tvm_dual.errors import DataError

CONDITION = mixing.Condition("white", 0)


def test_six_conditions():
    labels = [condition.label for condition in mixing.conditions()]
    assert labels == ["white_0", "white_10", "pink_0", "pink_10", "babble_0", "babble_10"]


def test_clips_cover_every_condition_at_their_ratio(calibration, evaluation):
    for clips, count in ((calibration, 12 * 3), (evaluation, 6 * 6)):
        assert len(clips) == count and {clip.condition for clip in clips} == set(mixing.conditions())
        for clip in clips:
            assert clip.clean.dtype == clip.noisy.dtype == np.float32 and clip.clean.shape == clip.noisy.shape
            added = clip.noisy.astype(float) - clip.clean
            ratio = 10 * np.log10(np.sum(clip.clean.astype(float) ** 2) / np.sum(added**2))
            assert ratio == pytest.approx(clip.condition.snr_db, abs=1e-2)


def test_amount_of_speech(calibration, evaluation):
    def seconds(clips):
        return sum(len(clip.clean) / clip.rate for clip in clips if clip.condition == CONDITION)

    assert 30 < seconds(calibration) < 40
    assert 35 < seconds(evaluation) < 45


def test_resampled_clips_keep_their_length_and_level(evaluation):
    upsampled = mixing.evaluation_clips(48_000)
    for before, after in zip(evaluation, upsampled, strict=True):
        assert after.rate == 48_000 and len(after.clean) == 3 * len(before.clean)
        assert np.std(after.clean) == pytest.approx(np.std(before.clean), rel=0.01)


def test_clips_are_the_same_every_time(calibration):
    again = mixing.calibration_clips(16_000)
    assert all(np.array_equal(one.noisy, two.noisy) for one, two in zip(calibration, again, strict=True))


PARTS = pytest.mark.parametrize("one, other", list(itertools.combinations(mixing.SEEDS, 2)))


@PARTS
def test_parts_share_no_recording(one, other):
    def prompts_and_contents(part):
        files = mixing.clip_files(part, "speech") + mixing.clip_files(part, "babble")
        contents = {hashlib.sha256(soundfile.read(path, dtype="int16")[0].tobytes()).digest() for path in files}
        return {path.stem.split("-", 2)[2] for path in files}, contents

    for ours, theirs in zip(prompts_and_contents(one), prompts_and_contents(other), strict=True):
        assert ours and theirs and not ours & theirs


@PARTS
def test_parts_share_no_noise(one, other):
    def starts(clips):
        noises = [(clip.noisy - clip.clean)[2000:40_000].astype(float) for clip in clips]
        return np.array([wave / np.linalg.norm(wave) for wave in noises])

    # A shared seed or babble from one place would correlate at lag 0; unrelated noise of this length does not.
    clips = {name: getattr(mixing, f"{name}_clips")(16_000) for name in (one, other)}
    assert np.abs(starts(clips[one]) @ starts(clips[other]).T).max() < 0.3
    assert mixing.SEEDS[one] != mixing.SEEDS[other]


def test_data_folder_is_small_and_licensed():
    files = [path for path in mixing.DATA.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    assert "CC-BY-SA-3.0" in (mixing.DATA / "LICENSE").read_text()
    readme = (mixing.DATA / "README.md").read_text()
    audio = [path for path in files if path.suffix == ".ogg"]
    assert audio and all(path.relative_to(mixing.DATA).as_posix() in readme for path in audio)


def test_clips_refuse_bad_folders(tmp_path: Path):
    with pytest.raises(DataError, match="found no"):
        mixing.evaluation_clips(folder=tmp_path)
    (tmp_path / "evaluation").mkdir()
    path = tmp_path / "evaluation" / "babble-xx-a.ogg"
    soundfile.write(path, np.ones((100, 2)) / 2, 8000)
    with pytest.raises(DataError, match="8000 Hz, 2 channels"):
        mixing.evaluation_clips(folder=tmp_path)
    path.write_bytes(b"no audio")
    with pytest.raises(DataError, match="cannot be read"):
        mixing.evaluation_clips(folder=tmp_path)
    with pytest.raises(DataError, match="rate"):
        mixing.evaluation_clips(0)
