"""How output pixels of a band of a convolution of bytes or of bf16 lie in what is read."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from schedules.bf16_vectors import BF16
from schedules.conv2d_shape import Conv2d
from schedules.quantize import round_up

#: Bytes that a product of tiles adds up at a time.
STEP = 64
#: How the pixels of a band are read: `image_lines`.
FORMS = ("rows", "whole", "spread")
#: Bytes of a value, by type.
SIZES = {"uint8": 1, BF16: 2, "float32": 4}


@dataclass(frozen=True)
class ByteConv:
    """A convolution of bytes or of bf16, and how its images come and go.

    Attributes
    ----------
    conv : Conv2d
    source, result : str
        ``uint8``, ``uint16`` (bf16: `schedules.bf16_vectors.BF16`) or ``float32``; what is not of the type `numbers` is
        converted as it is read. Bytes are read as bytes alone.
    residual : str
        The same of the image to be added.
    numbers : str
        What products are of: ``uint8`` or ``uint16``.
    """

    conv: Conv2d
    source: str = "float32"
    result: str = "float32"
    residual: str = "float32"
    numbers: str = "uint8"

    @classmethod
    def of_shape(cls, shape: tuple[int, ...]) -> ByteConv:
        """Return the convolution of bytes of a `shape`, with nothing behind it."""
        return cls(Conv2d.of_geometry(shape), *("uint8" if is_bytes else "float32" for is_bytes in shape[-2:]))

    @property
    def shape(self) -> tuple[int, ...]:
        """What tuning tells convolutions of bytes apart by: the geometry, and whether input and result are bytes."""
        return (*self.conv.geometry, int(self.source == "uint8"), int(self.result == "uint8"))

    @property
    def step(self) -> int:
        """Values that a product of tiles adds up at a time."""
        return STEP // SIZES[self.numbers]

    @property
    def sums(self) -> str:
        """Type of the sums."""
        return "int32" if self.numbers == "uint8" else "float32"

    @property
    def direct(self) -> bool:
        """Whether the input can be read where it is: without conversion and padding, its taps filling whole steps."""
        conv = self.conv
        return self.source == self.numbers and not any(conv.padding) and conv.runs[1] % self.step == 0


@dataclass(frozen=True)
class Lines:
    """How output pixels of a band lie in what is read: lines of pixels at a constant distance.

    Attributes
    ----------
    count, length : int
        Lines of a band, and pixels of each.
    pixel, line : int
        Values from one pixel, and from one line, to the next.
    runs : tuple of (int, int)
        For each run of neighbouring taps: values from a pixel to it, and its length, which is the same of all.
    beside : int
        Runs of one row of the kernel.
    across : int
        What a pixel's place is counted in: columns of the image that the lines lie in, of which those from the output's
        width on are nobody's.
    size : int
        Bytes of a value.
    """

    count: int
    length: int
    pixel: int
    line: int
    runs: tuple[tuple[int, int], ...]
    beside: int
    across: int
    size: int = 1

    @property
    def step(self) -> int:
        """Values of a step of `STEP` bytes."""
        return STEP // self.size

    @property
    def steps(self) -> int:
        """Steps of all runs."""
        return sum(-(-length // self.step) for _, length in self.runs)

    @property
    def loops(self) -> tuple[int, int, int]:
        """Rows of runs, runs of each row, steps of each run."""
        return len(self.runs) // self.beside, self.beside, -(-self.runs[0][1] // self.step)

    @property
    def strides(self) -> tuple[int, int]:
        """Values from one row of runs, and from one run of a row, to the next."""
        starts = [start for start, _ in self.runs]
        down = starts[self.beside] if len(starts) > self.beside else 0
        return down, starts[1] if self.beside > 1 else 0

    def place(self, pixel, width: int):
        """Return where a pixel of the lines lies in an output of `width` columns.

        Those between its rows are nobody's: they are written, too, where a pixel of the next row is written later.
        """
        return pixel if self.across == width else pixel - T.truncdiv(pixel, self.across) * (self.across - width)


def image_lines(byte: ByteConv, rows: int, form: str) -> Lines:
    """Return the lines of a band of `rows` output rows.

    `form` is ``rows``, one line each; ``whole``, a single line through the padding between rows, for strides of one; or
    ``spread``, a single line of all taps of each pixel.
    """
    conv, size = byte.conv, SIZES[byte.numbers]
    width, out = conv.padded_width * conv.inputs, conv.out_width
    if form == "spread":
        taps = round_up(conv.taps, byte.step)
        return Lines(1, rows * out, taps, 0, ((0, conv.taps),), 1, out, size)
    times, run = conv.runs
    runs = tuple(
        (down * conv.dilation[0] * width + across * conv.dilation[1] * conv.inputs, run)
        for down in range(conv.kernel[0])
        for across in range(times)
    )
    if form == "whole":
        length = (rows - 1) * conv.padded_width + out
        return Lines(1, length, conv.inputs, 0, runs, times, conv.padded_width, size)
    return Lines(rows, out, conv.strides[1] * conv.inputs, conv.strides[0] * width, runs, times, out, size)
