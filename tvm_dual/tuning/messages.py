"""What a tuner and its worker process say to each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """A call of a method of `tvm_dual.tuning.candidates.Bench`.

    Attributes
    ----------
    method : str
    arguments : tuple
    seconds : int
        Of processor time, after which the call is given up.
    """

    method: str
    arguments: tuple
    seconds: int


@dataclass(frozen=True)
class Failed:
    """The call raised."""

    error: str


@dataclass(frozen=True)
class Lost:
    """The child ended before it answered.

    Attributes
    ----------
    signal : int
        What ended it; 0 if it ended by itself.
    """

    signal: int
