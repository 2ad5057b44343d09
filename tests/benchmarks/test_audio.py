"""The speech data, the front end and the quality measures of the speech suites."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile

from benchmarks.audio import mixing, noise, quality
from benchmarks.audio.frontend import NSNET2_16K, NSNET2_48K, FrontEnd
from tvm_dual.errors import DataError

PRESETS = pytest.mark.parametrize("front_end", [NSNET2_48K, NSNET2_16K], ids=["48k", "16k"])
CONDITION = mixing.Condition("white", 0)


def tone_and_noise(samples: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (0.3 * np.sin(np.arange(samples) / 7) + 0.1 * generator.standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def evaluation():
    return mixing.evaluation_clips(16_000)


@pytest.fixture(scope="module")
def calibration():
    return mixing.calibration_clips(16_000)


# Front end.


@PRESETS
@pytest.mark.parametrize("extra", [-1, 0, 1, 300])
def test_gain_one_rebuilds_every_sample(front_end, extra):
    wave = tone_and_noise(20 * front_end.hop + extra)
    spectrogram = front_end.analyse(wave)
    rebuilt = front_end.synthesise(spectrogram, np.ones(spectrogram.shape, np.float32), len(wave))
    assert rebuilt.shape == wave.shape and rebuilt.dtype == np.float32
    np.testing.assert_allclose(rebuilt, wave, atol=2e-6)


@PRESETS
@pytest.mark.parametrize("samples", [1, 2, 159, 513])
def test_gain_one_rebuilds_short_waves(front_end, samples):
    wave = tone_and_noise(samples, seed=1)
    spectrogram = front_end.analyse(wave)
    np.testing.assert_allclose(front_end.synthesise(spectrogram, np.ones(spectrogram.shape), samples), wave, atol=2e-6)


@PRESETS
def test_frames_and_features_have_the_model_shape(front_end):
    wave = tone_and_noise(10 * front_end.hop)
    spectrogram = front_end.analyse(wave)
    features = front_end.features(spectrogram)
    bins = {48_000: 513, 16_000: 161}[front_end.rate]
    assert spectrogram.shape == features.shape == (front_end.frame_count(len(wave)), bins)
    assert (spectrogram.dtype, features.dtype) == (np.complex64, np.float32)


@PRESETS
def test_a_frame_is_the_windowed_transform_of_its_samples(front_end):
    wave = tone_and_noise(6 * front_end.hop)
    start = 3 * front_end.hop - front_end.delay
    square = scipy.signal.windows.hann(front_end.frame, sym=not front_end.periodic)
    expected = np.fft.rfft(wave[start : start + front_end.frame] * np.sqrt(square), n=front_end.fft)
    np.testing.assert_allclose(front_end.analyse(wave)[3], expected, atol=1e-4)


@PRESETS
def test_a_frame_needs_no_later_samples(front_end):
    wave = tone_and_noise(8 * front_end.hop)
    early = front_end.analyse(wave[: 4 * front_end.hop])[:4]
    np.testing.assert_allclose(front_end.analyse(wave)[:4], early, atol=1e-5)


def test_features_are_log_power_with_a_floor():
    spectrogram = np.zeros((2, NSNET2_48K.bins), np.complex64)
    spectrogram[1] = 3 + 4j
    features = NSNET2_48K.features(spectrogram)
    np.testing.assert_allclose(features[0], -12)
    np.testing.assert_allclose(features[1], np.log10(25), rtol=1e-6)


@pytest.mark.parametrize(
    "wave",
    [np.zeros(0), np.zeros((2, 100)), np.zeros(100, np.int16), np.full(100, np.nan), np.zeros(9, complex)],
    ids=["empty", "stereo", "int16", "nan", "complex"],
)
def test_analyse_refuses_bad_waves(wave):
    with pytest.raises(DataError, match="wave"):
        NSNET2_48K.analyse(wave)


def test_synthesise_refuses_what_does_not_fit():
    spectrogram = NSNET2_48K.analyse(tone_and_noise(4000))
    ones = np.ones(spectrogram.shape, np.float32)
    with pytest.raises(DataError, match="gains"):
        NSNET2_48K.synthesise(spectrogram, ones[:-1], 4000)
    with pytest.raises(DataError, match="gains"):
        NSNET2_48K.synthesise(spectrogram, ones * np.inf, 4000)
    with pytest.raises(DataError, match="length"):
        NSNET2_48K.synthesise(spectrogram, ones, 9000)
    with pytest.raises(DataError, match="spectrogram"):
        NSNET2_16K.features(spectrogram)
    with pytest.raises(DataError, match="spectrogram"):
        NSNET2_48K.features(spectrogram.real)


@pytest.mark.parametrize("sizes", [(960, 0, 1024), (960, 961, 1024), (960, 512, 512), (960, 960, 1024)])
def test_front_end_refuses_sizes_it_cannot_invert(sizes):
    frame, hop, fft = sizes
    with pytest.raises(DataError, match="front end"):
        FrontEnd(48_000, frame, hop, fft)


# Noise and mixing.


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


# Data.


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


# Quality.


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
