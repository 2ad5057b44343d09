"""The suite ffdnet: a denoiser of images with few zeros, where every layer should stay dense."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import onnx

from benchmarks.image_suite import Judge, Network, Progress, Result, Turns, run_networks
from benchmarks.image_suite import show as show_rows
from benchmarks.networks import ffdnet_model, read_weights
from benchmarks.packages import package_file
from benchmarks.tables import fastest
from tvm_dual.errors import DataError
from tvm_dual.options import AdvancedOptions

__all__ = ["FILES", "FULL", "NAME", "SHORT", "run", "show"]

NAME = "ffdnet"
#: Options of the command that name what the suite reads.
FILES = ()
#: Of the noise, as a share of white: 25 of 255 grey levels.
SIGMA = 25 / 255
#: PSNR in dB that the plan may lose on the judging images.
MAX_DROP = 0.1
#: dB that an engine of the same quality may be off by.
SAME = ("psnr_db", 0.1)
OPTIONS = AdvancedOptions(rule="damage")
SEEDS = {"calibration": 1, "evaluation": 2, "judging": 3}
#: Luma of red, green and blue (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes
    ----------
    turns : Turns
    pixels : int
        Rows and columns of an image; even.
    calibration, judging, evaluation : int
        Images to calibrate on, to judge plans on, and to time and score.
    """

    turns: Turns
    pixels: int
    calibration: int
    judging: int
    evaluation: int


FULL = Size(Turns(10, 12), pixels=128, calibration=24, judging=12, evaluation=12)
SHORT = Size(Turns(3, 4), pixels=64, calibration=8, judging=4, evaluation=4)


def network_model(size: Size) -> onnx.ModelProto:
    """Return the network of the package ``ffdnet``; raises as `benchmarks.packages.package_file` does."""
    weights = read_weights(package_file("ffdnet", "ffdnet_weights_gray.pth"))
    return ffdnet_model(weights, size.pixels // 2, size.pixels // 2)


def noisy_crops(photo: np.ndarray, size: Size) -> np.ndarray:
    """Return the images that plans are calibrated on, in the network's parts."""
    images = crops(photo, "calibration", size.calibration, size.pixels)
    return parts(with_noise(images, SEEDS["calibration"]))


def run(threads: int, size: Size, progress: Progress) -> Result:
    """Build the network in all forms, and measure it with the peers.

    Parameters
    ----------
    threads : int
    size : Size
    progress : callable
        Called with ``(phase, done, total)``.

    Raises
    ------
    SetupError
        If the package with the weights is not installed.
    DataError
        If matplotlib comes without its photograph.
    """
    model = network_model(size)
    photo = photograph()
    clean = {
        part: crops(photo, part, count, size.pixels)
        for part, count in (
            ("judging", size.judging),
            ("evaluation", size.evaluation),
        )
    }
    noisy = {part: with_noise(images, SEEDS[part]) for part, images in clean.items()}
    with tempfile.TemporaryDirectory(prefix="ffdnet-") as folder:
        path = Path(folder) / "ffdnet.onnx"
        onnx.save(model, path)
        network = Network(
            "ffdnet",
            path,
            noisy_crops(photo, size),
            parts(noisy["evaluation"]),
            lambda outputs, published: {"psnr_db": psnr(outputs, noisy["evaluation"], clean["evaluation"])},
            SAME,
            Judge(parts(noisy["judging"]), lambda outputs: psnr(outputs, noisy["judging"], clean["judging"])),
            MAX_DROP,
            OPTIONS,
            quantized=True,
        )
        return run_networks([network], threads, size.turns, progress)


def show(result: Result, path: Path) -> None:
    """Print the result, whose rows are in the file `path`."""
    show_rows(result, path)
    dense, dual = (fastest(result.rows, ("fp32",), True, mode) for mode in ("dense", "dual"))
    if dense and dual:
        print(f"our dense fp32 / dual: {dense['median_ms'] / dual['median_ms']:.2f}")


def photograph() -> np.ndarray:
    """Return the photograph that comes with matplotlib in grey, ``float32 (rows, columns)`` from 0 to 1."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not path.is_file():
        raise DataError(f"{path}: not there; install matplotlib with its sample data")
    return (matplotlib.image.imread(path) @ np.array(_LUMA) / 255).astype("float32")


def crops(photo: np.ndarray, part: str, count: int, pixels: int) -> np.ndarray:
    """Return square pieces of a photograph, ``float32 (count, pixels, pixels)``; parts share no pixel.

    The calibration's lie in its upper half, the judging's and the evaluation's in the left and right half below.

    Raises
    ------
    DataError
        If the photograph is too small.
    """
    rows, columns = photo.shape
    top, bottom = (0, rows // 2) if part == "calibration" else (rows // 2, rows)
    left, right = {"calibration": (0, columns), "judging": (0, columns // 2), "evaluation": (columns // 2, columns)}[
        part
    ]
    if bottom - top < pixels or right - left < pixels:
        raise DataError(f"photograph: {rows} x {columns} pixels; needed: at least {2 * pixels} x {2 * pixels}")
    random = np.random.default_rng(SEEDS[part])
    corners = zip(
        random.integers(top, bottom - pixels + 1, count), random.integers(left, right - pixels + 1, count), strict=True
    )
    return np.stack([photo[row : row + pixels, column : column + pixels] for row, column in corners])


def with_noise(images: np.ndarray, seed: int) -> np.ndarray:
    """Return images with Gaussian noise of `SIGMA`, float32."""
    noise = np.random.default_rng((seed, 1)).standard_normal(images.shape)
    return (images + SIGMA * noise).astype("float32")


def parts(images: np.ndarray) -> np.ndarray:
    """Return what the network reads, ``float32 (images, 5, rows / 2, columns / 2)``.

    Behind a map of the noise come the images of every second row and column.
    """
    quarters = [images[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return np.stack([np.full_like(quarters[0], SIGMA), *quarters], axis=1)


def denoised(outputs: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """Return the images without the noise that the network gave, whatever the shape it comes in."""
    count, rows, columns = noisy.shape
    quarters = outputs.reshape(count, 2, 2, rows // 2, columns // 2)
    return noisy - quarters.transpose(0, 3, 1, 4, 2).reshape(noisy.shape)


def psnr(outputs: np.ndarray, noisy: np.ndarray, clean: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of denoised images, dB, the mean over images."""
    errors = np.square(denoised(outputs, noisy) - clean, dtype="float64").mean(axis=(1, 2))
    return float(-10 * np.log10(errors).mean())
