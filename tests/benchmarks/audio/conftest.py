"""What tests of speech share: a wave, and the clips."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.audio import mixing


def tone_and_noise(samples: int, seed: int = 0) -> np.ndarray:
    """Return a sine wave under noise, float32."""
    generator = np.random.default_rng(seed)
    return (0.3 * np.sin(np.arange(samples) / 7) + 0.1 * generator.standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="session")
def evaluation():
    """Return the clips that quality is measured on, at 16 kHz."""
    return mixing.evaluation_clips(16_000)


@pytest.fixture(scope="session")
def calibration():
    """Return the clips that libraries are calibrated on, at 16 kHz."""
    return mixing.calibration_clips(16_000)
