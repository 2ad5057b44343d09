"""The geometry of a convolution: everything about it but its weights."""

from __future__ import annotations

from dataclasses import dataclass

#: Names of what `Conv2d.geometry` lists.
GEOMETRY = (
    *("batch", "height", "width", "inputs", "outputs"),
    *("kernel_rows", "kernel_columns", "stride_down", "stride_across"),
    *("top", "left", "bottom", "right", "gap_down", "gap_across"),
)


@dataclass(frozen=True)
class Conv2d:
    """A convolution of images that lie pixel by pixel (NHWC), with what follows it.

    Attributes
    ----------
    batch, height, width : int
        Images, and extents of the input in pixels.
    inputs, outputs : int
        Channels.
    kernel, strides, dilation : tuple of int
        Down and across.
    padding : tuple of int
        Pixels of zeros at the top, left, bottom and right.
    activation : str or None
        A key of `schedules.epilogue.NONLINEARITIES`.
    residual : bool
        Whether an image of the output's shape is added before the nonlinearity.
    """

    batch: int
    height: int
    width: int
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    activation: str | None = None
    residual: bool = False

    @classmethod
    def of_geometry(cls, geometry: tuple[int, ...]) -> Conv2d:
        """Return the convolution of a `geometry`, with nothing behind it."""
        return cls(*geometry[:5], geometry[5:7], geometry[7:9], geometry[9:13], geometry[13:15])

    @property
    def geometry(self) -> tuple[int, ...]:
        """Everything but what follows: extents and steps, as `GEOMETRY` names them."""
        extents = (self.batch, self.height, self.width, self.inputs, self.outputs)
        return (*extents, *self.kernel, *self.strides, *self.padding, *self.dilation)

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns of the input that one output sees, gaps included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def padded_width(self) -> int:
        """Columns of the input with its padding."""
        return self.width + self.padding[1] + self.padding[3]

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height + self.padding[0] + self.padding[2] - self.reach[0]) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.padded_width - self.reach[1]) // self.strides[1] + 1

    @property
    def input_size(self) -> int:
        """Values of the input."""
        return self.batch * self.height * self.width * self.inputs

    @property
    def output_size(self) -> int:
        """Values of the output."""
        return self.batch * self.out_height * self.out_width * self.outputs

    @property
    def residual_size(self) -> int:
        """Values of the image to be added; one, which nobody reads, where there is none."""
        return self.output_size if self.residual else 1

    @property
    def taps(self) -> int:
        """Products per output and pixel: the length of a row of the weight matrix."""
        return self.kernel[0] * self.kernel[1] * self.inputs

    @property
    def runs(self) -> tuple[int, int]:
        """How many runs of neighbouring input values a row of the kernel reads, and their length.

        Without gaps between columns a row's taps are one run, since pixels lie channels last.
        """
        if self.dilation[1] == 1:
            return 1, self.kernel[1] * self.inputs
        return self.kernel[1], self.inputs
