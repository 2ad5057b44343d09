"""Pages of printed words, for networks that find or read them."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

#: Mean and deviation of the values of white and black, as networks of text are given them.
_MEAN, _DEVIATION = 0.5, 0.5
_WORDS = [
    "little",
    "modules",
    "approximate",
    "every",
    "layer",
    "a",
    "gate",
    "opens",
    "units",
    "that",
    "matter",
    "and",
    "kernels",
    "compute",
    "those",
]


def pages(count: int, seed: int, pixels: int) -> np.ndarray:
    """Return pages of printed words of several sizes, as the network reads them.

    Returns
    -------
    ndarray, float32, (count, 3, pixels, pixels)
        From -1, black, to 1, white.
    """
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        figure = matplotlib.figure.Figure(figsize=(pixels / 100, pixels / 100), dpi=100)
        canvas, place = FigureCanvasAgg(figure), 0.94
        while place > 0.05:
            size = random.uniform(7, 22)
            line = " ".join(random.choice(_WORDS, 4))
            figure.text(random.uniform(0.02, 0.2), place, line, size=size, color=str(random.uniform(0, 0.4)))
            place -= size / 100 * random.uniform(0.5, 1.2)
        canvas.draw()
        found.append(np.asarray(canvas.buffer_rgba())[:, :, :3].transpose(2, 0, 1))
    return ((np.stack(found) / 255 - _MEAN) / _DEVIATION).astype("float32")
