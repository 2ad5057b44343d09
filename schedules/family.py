"""What a family of kernels that are tuned consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx

from schedules.knobs import Knobs

if TYPE_CHECKING:
    from schedules.families import Workload


@dataclass(frozen=True)
class Family:
    """A template with knobs.

    Attributes
    ----------
    axes : tuple of str
        Names of a workload's extents.
    knobs : type
        Its dataclass of `schedules.knobs`.
    default : callable
        From a workload to the knobs of a build without records.
    space : callable
        From a workload to the values worth trying, by knob.
    build : callable
        From a workload and knobs to the kernel.
    fits : callable
        From a workload and a combination of the space's values whether it is worth trying; the default always is.
    exact : tuple of str
        Axes that say what a kernel is, not how large: records are not transferred from one value to another.
    label : callable
        From a workload's extents to a short name for people.
    """

    axes: tuple[str, ...]
    knobs: type[Knobs]
    default: Callable[[Workload], Knobs]
    space: Callable[[Workload], dict[str, tuple[int, ...]]]
    build: Callable[[Workload, Knobs], tirx.PrimFunc]
    fits: Callable[[Workload, Knobs], bool] = lambda workload, knobs: True
    exact: tuple[str, ...] = ()
    label: Callable[[tuple[int, ...]], str] = lambda shape: "x".join(map(str, shape))
