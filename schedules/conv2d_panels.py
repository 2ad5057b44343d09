"""Panels of a convolution's output channels; see `schedules.panels`."""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from schedules.cpu import Isa
from schedules.panels import panel_size, split_panels


def pack_panels(isa: Isa, weight: np.ndarray, bias: np.ndarray, vectors: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(weight: f32[panels, taps, panel], bias: f32[max(outputs, panel)])`` for panels of `vectors`.

    `weight` is ``float32 (outputs, kernel rows, kernel columns, inputs)``, `bias` ``float32 (outputs,)``.
    """
    rows = weight.reshape(len(weight), -1)
    missing = max(0, panel_size(isa, len(rows), vectors) - len(rows))
    packed = np.stack([panel.T for panel in split_panels(isa, rows, vectors)])
    return packed, np.append(bias, np.zeros(missing)).astype("float32")


def panel_count(outputs: int, size: int) -> int:
    """Return how many panels of `size` cover all outputs."""
    return -(-outputs // size)


def share_bands(bands: int, panels: int, threads: int) -> bool:
    """Whether threads that share the bands wait no longer for each other than if they share the panels of each."""

    def waiting(parts: int) -> float:
        """Return the time that `threads` take for equal `parts`, as a multiple of the best possible."""
        return -(-parts // threads) * threads / parts

    return waiting(bands) <= waiting(panels)


def panel_slices(outputs: int, size: int) -> list[slice]:
    """Return the outputs of each panel."""
    return [slice(start, min(start + size, outputs)) for start in panel_starts(outputs, size)]


def panel_starts(outputs: int, size: int) -> list[int]:
    """Return the first output of each panel; one that is not full overlaps the one before it."""
    return [min(panel * size, max(0, outputs - size)) for panel in range(panel_count(outputs, size))]


def panel_column(panel, outputs: int, size: int):
    """Return the first output of a panel."""
    return T.min(panel * size, max(0, outputs - size))
