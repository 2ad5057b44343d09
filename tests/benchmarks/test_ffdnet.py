"""The suite ffdnet: pieces of a photograph, noise, what the network reads and gives."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from benchmarks import ffdnet
from benchmarks.networks import ffdnet_model, read_weights
from benchmarks.packages import package_file
from tvm_dual.errors import DataError


@pytest.fixture(scope="module")
def weights():
    """Return the published weights."""
    return read_weights(package_file("ffdnet", "ffdnet_weights_gray.pth"))


def test_parts_of_the_photograph_share_no_pixel():
    # Every pixel says where it is.
    photo = np.arange(40 * 50, dtype="float32").reshape(40, 50)
    seen = [set(ffdnet.crops(photo, part, 20, 8).ravel()) for part in ffdnet.SEEDS]
    assert all(seen) and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    with pytest.raises(DataError, match=r"40 x 50 pixels; needed: at least 84 x 84"):
        ffdnet.crops(photo, "judging", 1, 42)


def test_the_photograph_is_grey_and_scaled():
    photo = ffdnet.photograph()
    assert photo.dtype == np.float32 and 0 <= photo.min() < 0.1 and 0.8 < photo.max() <= 1


def test_what_is_taken_apart_is_put_together_again():
    noisy = np.random.default_rng(0).random((3, 8, 6)).astype("float32")
    read = ffdnet.parts(noisy)
    assert read.shape == (3, 5, 4, 3) and (read[:, 0] == np.float32(ffdnet.SIGMA)).all()
    unshuffled = nn.functional.pixel_unshuffle(torch.from_numpy(noisy)[:, None], 2).numpy()
    np.testing.assert_array_equal(read[:, 1:], unshuffled)
    assert not ffdnet.denoised(read[:, 1:].reshape(3, -1), noisy).any()


def test_psnr_of_a_known_error():
    clean = np.zeros((2, 4, 4), "float32")
    assert ffdnet.psnr(np.zeros((2, 16), "float32"), clean + np.float32(0.1), clean) == pytest.approx(20, abs=1e-4)


def test_the_model_is_the_published_one_and_removes_noise(weights):
    clean = ffdnet.crops(ffdnet.photograph(), "evaluation", 1, 32)
    noisy = ffdnet.with_noise(clean, 0)
    model = ffdnet_model(weights, 16, 16)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"parts": ffdnet.parts(noisy)})
    layers = []
    for name, array in weights.items():
        if array.ndim == 4:
            layers.append(nn.Conv2d(array.shape[1], array.shape[0], 3, padding=1, bias=False))
            layers[-1].weight.data = torch.from_numpy(array)
        elif name.endswith(".running_mean"):
            norm = nn.BatchNorm2d(len(array))
            prefix = name.removesuffix("running_mean")
            norm.load_state_dict(
                {key.removeprefix(prefix): torch.from_numpy(v) for key, v in weights.items() if key.startswith(prefix)}
            )
            layers.append(norm)
    rectified = nn.Sequential()
    for i, layer in enumerate(layers):
        rectified.append(layer)
        # Behind the first convolution and behind every normalization.
        if i == 0 or isinstance(layer, nn.BatchNorm2d):
            rectified.append(nn.ReLU())
    with torch.inference_mode():
        wanted = rectified.eval()(torch.from_numpy(ffdnet.parts(noisy))).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    before = ffdnet.psnr(np.zeros_like(found), noisy, clean)
    assert before == pytest.approx(20.2, abs=0.7) and ffdnet.psnr(found, noisy, clean) > before + 6
