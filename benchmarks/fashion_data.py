"""Fashion-MNIST: 28 x 28 grey images of ten kinds of clothes, and the networks that are trained on it.

Source: Xiao, Rasul and Vollgraf, 2017, MIT licence; Debian's package ``dataset-fashion-mnist`` holds it.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from tvm_dual.errors import DataError

#: Where Debian's package puts the data.
DEFAULT = Path("/usr/share/datasets/fashion-mnist")
CLASSES, SIZE = 10, 28
#: Last images of the training part, which are not trained on: thresholds are chosen on them.
HELD_BACK = 5000
#: Of all training images' grey values, from 0 to 1.
MEAN, DEVIATION = 0.2860, 0.3530
#: Bytes of an IDX file before its values: of images, and of labels.
_HEADER = {"images-idx3": 16, "labels-idx1": 8}


@dataclass(frozen=True, eq=False)
class Fashion:
    """One part of the data.

    Attributes
    ----------
    images : ndarray, float32, (n, 1, 28, 28)
        Of mean 0 and deviation 1 over the training part.
    labels : ndarray, int64, (n,)
        From 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


def read_fashion(part: str, folder: Path | None = None) -> Fashion:
    """Read ``train`` (60,000 images) or ``t10k`` (10,000).

    Raises
    ------
    DataError
        If a file is missing or has another size.
    """
    folder, count = folder or DEFAULT, {"train": 60_000, "t10k": 10_000}[part]
    images = _values(folder / f"{part}-images-idx3-ubyte.gz", count * SIZE * SIZE)
    labels = _values(folder / f"{part}-labels-idx1-ubyte.gz", count)
    scaled = (images.astype("float32") / 255 - MEAN) / DEVIATION
    return Fashion(scaled.reshape(-1, 1, SIZE, SIZE), labels.astype("int64"))


def _values(path: Path, count: int) -> np.ndarray:
    if not path.is_file():
        raise DataError(
            f"Fashion-MNIST '{path}': not there; install Debian's package dataset-fashion-mnist, or name a folder "
            "with its four .gz files"
        )
    header = next(size for kind, size in _HEADER.items() if kind in path.name)
    found = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)[header:]
    if len(found) != count:
        raise DataError(f"Fashion-MNIST '{path}': {len(found)} values; accepted: {count}")
    return found


def vgg() -> nn.Module:
    """Return eight 3 x 3 convolutions of 64 to 512 channels, a maximum over 2 x 2 after every second, as VGG has them.

    Source: Simonyan and Zisserman, 2015, with batch normalization and a mean over all pixels before the last layer.
    """
    layers, inputs = [], 1
    for outputs in (64, 128, 256, 512):
        for _ in range(2):
            layers += [_conv(inputs, outputs), nn.ReLU()]
            inputs = outputs
        if outputs < 512:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


class Residual(nn.Module):
    """Two convolutions, and their input added to what they give.

    Source: He, Zhang, Ren and Sun, 2016.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Start from random weights; a 1 x 1 convolution fits the input to another shape."""
        super().__init__()
        self.body = nn.Sequential(_conv(inputs, outputs, stride), nn.ReLU(), _conv(outputs, outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, stride, kernel=1)

    def forward(self, x):
        """Map (n, inputs, height, width) to (n, outputs, height / stride, width / stride)."""
        return (self.body(x) + self.shortcut(x)).relu()


def resnet() -> nn.Module:
    """Return ResNet-18 for small images: 64 to 512 channels, the first convolution 3 x 3 without stride or pooling."""
    blocks, inputs = [], 64
    for outputs in (64, 128, 256, 512):
        blocks += [Residual(inputs, outputs, 1 if outputs == 64 else 2), Residual(outputs, outputs, 1)]
        inputs = outputs
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))
    return nn.Sequential(_conv(1, 64), nn.ReLU(), *blocks, *head)


NETWORKS = {"vgg": vgg, "resnet": resnet}


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Module:
    # Of one name, so that a printed network has a line for each.
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
