"""Coarse little modules of convolutions: the directions that predict blocks of two by two pixels, in closed form.

Targets are the sums of a block's four pixels together, which are linear in what the four see together; so they are
fitted as those of single pixels are (`tvm_dual.little.fit_responses`).
"""

from __future__ import annotations

from itertools import product

import numpy as np

from schedules.coarse import BLOCK, coarse_projection
from schedules.conv2d_shape import Conv2d
from tvm_dual.little import FittedLittle, fit_responses
from tvm_dual.observations import PATCH_VALUES, Observations
from tvm_dual.sites import Site

#: Blocks that are fitted to, at most, and those that a direction needs: of fewer, errors that are left say little.
BLOCKS, PER_DIRECTION = 8000, 8
#: Directions that are fitted in any case.
LEAST = 16
#: A block's pixels, down and across, in the order of its sums.
_PIXELS = list(product(range(BLOCK), repeat=2))


class Blocks:
    """Blocks of a convolution's output, from all over the images that it was seen to read.

    Attributes
    ----------
    seen : ndarray, float32, (blocks, inputs)
        What each block sees.
    sums : ndarray, float32, (blocks, 4, channels)
        Of its pixels, without what is added.
    added : ndarray, float32, (blocks, 4, channels), or None
        The image that is added before the nonlinearity, if there is one.
    inside : ndarray, bool, (blocks, 4)
        Which pixels are those of the output.
    """

    def __init__(self, site: Site, observed: Observations, most: int = BLOCKS) -> None:
        """Take `most` blocks at most."""
        conv, examples = site.conv, observed.examples
        inner = coarse_projection(conv, 1)
        most = min(most, max(1, PATCH_VALUES // inner.taps))
        windows = [_windows(inner, example[0]) for example in examples]
        extents = (len(windows), *windows[0].shape[:3])
        drawn = np.random.default_rng(0).permutation(int(np.prod(extents)))[:most]
        example, image, row, column = np.unravel_index(np.sort(drawn), extents)
        # Sorted by example, so that what all of them give follows in the order of `drawn`.
        places = [(image[example == e], row[example == e], column[example == e]) for e in range(len(windows))]
        self._windows = np.concatenate([seen[place] for seen, place in zip(windows, places, strict=True)])
        self.seen = self._windows.reshape(len(self._windows), -1)
        self.sums = np.stack([self._pixel(conv, *pixel) @ site.weight.T + site.bias for pixel in _PIXELS], axis=1)
        rows, columns = (
            np.stack([BLOCK * place + pixel[axis] for pixel in _PIXELS], axis=1)
            for axis, place in enumerate((row, column))
        )
        self.inside = (rows < conv.out_height) & (columns < conv.out_width)
        self.added = None
        if len(examples[0]) > 1:
            rows, columns = np.minimum(rows, conv.out_height - 1), np.minimum(columns, conv.out_width - 1)
            whole = np.stack([given[1] for given in examples])
            self.added = whole[example[:, None], image[:, None], rows, columns]

    def _pixel(self, conv: Conv2d, down: int, across: int) -> np.ndarray:
        """Return what one pixel of each block sees."""
        top, left = down * conv.strides[0], across * conv.strides[1]
        part = self._windows[:, top : top + conv.kernel[0], left : left + conv.kernel[1]]
        return part.reshape(len(part), -1)


def _windows(inner: Conv2d, images: np.ndarray) -> np.ndarray:
    """Return what each output of a convolution sees, a view ``(batch, rows, columns, *kernel, channels)``."""
    top, left, bottom, right = inner.padding
    padded = np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
    found = np.lib.stride_tricks.sliding_window_view(padded, inner.kernel, axis=(1, 2))
    found = found[:, :: inner.strides[0], :: inner.strides[1]][:, : inner.out_height, : inner.out_width]
    return found.transpose(0, 1, 2, 4, 5, 3)


def coarse_weight(site: Site) -> np.ndarray:
    """Return the layer's weights as rows of what a block sees, float32 (4 * channels, inputs)."""
    conv, inner = site.conv, coarse_projection(site.conv, 1)
    found = np.zeros((len(_PIXELS), conv.outputs, *inner.kernel, conv.inputs), "float32")
    filters = site.weight.reshape(conv.outputs, *conv.kernel, conv.inputs)
    for rows, (down, across) in zip(found, _PIXELS, strict=True):
        top, left = down * conv.strides[0], across * conv.strides[1]
        rows[:, top : top + conv.kernel[0], left : left + conv.kernel[1]] = filters
    return found.reshape(-1, inner.taps)


def coarse_little(site: Site, blocks: Blocks, directions: int, importance: np.ndarray) -> FittedLittle:
    """Return a coarse little module; its spread is that of channels, over all pixels of blocks.

    Parameters
    ----------
    site : Site
    blocks : Blocks
    directions : int
        Values for each block; fewer are fitted where there are not `PER_DIRECTION` blocks for each.
    importance : ndarray, float32, (channels,)
        How much an error of each channel matters.
    """
    directions = min(directions, max(LEAST, len(blocks.sums) // PER_DIRECTION // LEAST * LEAST))
    targets = blocks.sums.reshape(len(blocks.sums), -1)
    four = np.tile(importance, len(_PIXELS))
    module = fit_responses(blocks.seen, targets, coarse_weight(site), directions, four).module
    errors = (blocks.sums - coarse_sums(module, blocks))[blocks.inside]
    return FittedLittle(module, errors.std(axis=0).astype("float32"))


def coarse_sums(module, blocks: Blocks) -> np.ndarray:
    """Return what a coarse little module predicts of blocks, float32 (blocks, 4, channels)."""
    (projection,) = module.projections
    found = (blocks.seen @ projection.T - module.center) @ module.weight.T + module.bias
    return found.reshape(len(found), len(_PIXELS), -1)
