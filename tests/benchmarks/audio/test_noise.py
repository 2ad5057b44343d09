"""Noises, and how they are mixed with speech."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from benchmarks.audio import noise
from tests.benchmarks.audio.conftest import tone_and_noise
from tvm_dual.errors import DataError


@pytest.mark.parametrize(("make", "slope"), [(noise.white_noise, 0.0), (noise.pink_noise, -1.0)])
def test_noise_has_its_spectral_slope_and_unit_rms(make, slope):
    wave = make(1 << 17, seed=3)
    frequency, power = scipy.signal.welch(wave, 16_000, nperseg=4096)
    band = (frequency > 50) & (frequency < 7000)
    fitted = np.polyfit(np.log10(frequency[band]), np.log10(power[band]), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.05)
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(1)


@pytest.mark.parametrize("make", [noise.white_noise, noise.pink_noise])
def test_noise_follows_its_seed(make):
    assert np.array_equal(make(500, seed=(1, 2)), make(500, seed=(1, 2)))
    assert not np.array_equal(make(500, seed=(1, 2)), make(500, seed=(1, 3)))


def test_babble_holds_every_talker_equally_loud():
    time = np.arange(16_000) / 16_000
    talkers = [np.sin(2 * np.pi * 400 * time), 0.01 * np.sin(2 * np.pi * 900 * time[:8000])]
    babble = noise.babble_noise(24_000, 3, talkers)
    assert babble.shape == (24_000,) and np.sqrt(np.mean(babble**2)) == pytest.approx(1)
    assert np.array_equal(babble, noise.babble_noise(24_000, 3, talkers))
    power = np.abs(np.fft.rfft(babble)) ** 2
    at = [power[round(hertz * 1.5) - 2 : round(hertz * 1.5) + 3].sum() for hertz in (400, 900)]
    assert sum(at) > 0.99 * power.sum() and min(at) > 0


@pytest.mark.parametrize("snr_db", [-5, 0, 10.5])
def test_mix_has_the_ratio_asked_for(snr_db):
    clean = tone_and_noise(5000)
    mixed = noise.mix(clean, 7 * noise.white_noise(5000, seed=1), snr_db)
    added = mixed - clean
    assert 10 * np.log10(np.sum(clean.astype(float) ** 2) / np.sum(added**2)) == pytest.approx(snr_db, abs=1e-3)


def test_noise_and_mix_refuse_bad_input():
    ones = np.ones(10)
    for bad in (np.zeros(10), np.full(10, np.nan), np.ones(11), np.ones((1, 10)), np.ones(0)):
        with pytest.raises(DataError):
            noise.mix(ones, bad, 0)
    with pytest.raises(DataError):
        noise.mix(np.ones(0), np.ones(0), 0)
    with pytest.raises(DataError, match="SNR"):
        noise.mix(ones, ones, float("nan"))
    with pytest.raises(DataError, match="samples"):
        noise.pink_noise(0, seed=0)
    with pytest.raises(DataError, match="talkers"):
        noise.babble_noise(10, 0, [])
    with pytest.raises(DataError):
        noise.babble_noise(10, 0, [np.zeros(0)])
