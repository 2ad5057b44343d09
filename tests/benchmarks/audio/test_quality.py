"""Measures of speech quality."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.audio import quality
from tests.benchmarks.audio.conftest import tone_and_noise
from tvm_dual.errors import DataError


def orthogonal_pair(samples: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    reference, other = np.random.default_rng(5).standard_normal((2, samples))
    other -= (other @ reference) / (reference @ reference) * reference
    return reference, other * np.linalg.norm(reference) / np.linalg.norm(other)


@pytest.mark.parametrize("decibel", [-3.0, 0.0, 17.0])
def test_si_sdr_of_orthogonal_distortion_is_the_power_ratio(decibel):
    reference, other = orthogonal_pair()
    estimate = reference + 10 ** (-decibel / 20) * other
    assert quality.si_sdr_db(estimate, reference) == pytest.approx(decibel, abs=1e-9)


def test_si_sdr_ignores_scale():
    reference, other = orthogonal_pair()
    estimate = reference + 0.2 * other
    expected = quality.si_sdr_db(estimate, reference)
    for scale in (-2.0, 1e-3, 40.0):
        assert quality.si_sdr_db(scale * estimate, reference) == pytest.approx(expected)
        assert quality.si_sdr_db(estimate, scale * reference) == pytest.approx(expected)


def test_si_sdr_of_the_reference_is_infinite():
    assert quality.si_sdr_db(np.array([1.0, -2, 4]), np.array([1.0, -2, 4])) == np.inf
    assert quality.si_sdr_db(np.array([0.0, 1]), np.array([1.0, 0])) == -np.inf


@pytest.mark.parametrize("bad", [np.zeros(10), np.full(10, np.inf), np.ones(11), np.ones((2, 5)), np.ones(0)])
def test_measures_refuse_bad_waves(bad):
    for measure in (quality.si_sdr_db, lambda *waves: quality.pesq_wb(*waves, 16_000)):
        with pytest.raises(DataError):
            measure(bad, np.ones(10))
        with pytest.raises(DataError):
            measure(np.ones(10), bad)


def test_pesq_ranks_more_noise_lower(evaluation):
    pytest.importorskip("pesq")
    loud, quiet = (next(c for c in evaluation if c.condition == ("pink", snr)) for snr in (0, 10))
    scores = [quality.pesq_wb(wave, loud.clean, 16_000) for wave in (loud.clean, quiet.noisy, loud.noisy)]
    assert scores[0] > 4.5 > scores[1] > scores[2] >= 1


def test_pesq_refuses_what_is_too_short():
    pytest.importorskip("pesq")
    with pytest.raises(DataError, match="PESQ"):
        quality.pesq_wb(tone_and_noise(300), tone_and_noise(300), 16_000)
    with pytest.raises(DataError, match="rate"):
        quality.pesq_wb(tone_and_noise(300), tone_and_noise(300), 0)


def test_score_averages_overall_and_by_condition(evaluation):
    clips = [clip for clip in evaluation if clip.condition.noise == "white"][:4]
    scores = quality.score(((clip, clip.noisy) for clip in clips), with_pesq=False)
    assert set(scores) == {"si_sdr_db", "si_sdr_db/white_0", "si_sdr_db/white_10"}
    assert scores["si_sdr_db/white_0"] == pytest.approx(0, abs=0.5)
    assert scores["si_sdr_db/white_10"] == pytest.approx(10, abs=0.5)
    assert scores["si_sdr_db"] == pytest.approx((scores["si_sdr_db/white_0"] + scores["si_sdr_db/white_10"]) / 2)


def test_score_names_the_clip_it_cannot_score(evaluation):
    with pytest.raises(DataError, match=f"{evaluation[0].name}, white_0"):
        quality.score([(evaluation[0], evaluation[0].noisy[:-1])], with_pesq=False)
    with pytest.raises(DataError, match="no clips"):
        quality.score([])
