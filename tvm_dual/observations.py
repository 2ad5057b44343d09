"""Observations: what each site reads while the dense model sees the calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from tvm_dual.calibration import CalibrationData
from tvm_dual.library import DualLibrary
from tvm_dual.sites import Site

#: Vectors that closed forms are fitted to: beyond a few thousand these do not change.
MAX_SAMPLES = 24_000
#: Vectors that are kept of recurrent layers, and their values (1 GB a layer): training a layer of 1500 units on 16,000
#: overfits. They are kept in runs of this length, so that a layer can be followed through time.
MAX_STEPS, STEP_VALUES, RUN = 64_000, 1 << 28, 400
#: Values that are kept of what pixels of a convolution's output see: 64 MB a layer.
PATCH_VALUES = 1 << 24
#: Whole calls that are kept of a layer without states, at most, and their bytes unless one call has more. Coarse little
#: modules are fitted to them.
EXAMPLES, EXAMPLE_BYTES = 128, 1 << 23


@dataclass(frozen=True, eq=False)
class Observations:
    """What one site read.

    Attributes
    ----------
    inputs : tuple of ndarray, float32, (samples, length)
        The input, then the states: h of a recurrent layer, and c of an LSTM. Of a convolution what one pixel of
        its output sees, padding included.
    runs : tuple of int
        Where a run of consecutive calls of one stream begins.
    residual : ndarray, float32, (samples, rows), or None
        What a convolution's sums were added to, if it adds an image.
    examples : tuple of tuple of ndarray
        Of a layer without states: all that it read in some calls, by call.
    """

    inputs: tuple[np.ndarray, ...]
    runs: tuple[int, ...] = (0,)
    residual: np.ndarray | None = None
    examples: tuple[tuple[np.ndarray, ...], ...] = ()

    def some(self, most: int = MAX_SAMPLES) -> Observations:
        """Return at most so many samples, evenly spread; of a recurrent layer they follow each other no longer."""
        every = -(-len(self.inputs[0]) // most)
        if every == 1:
            return self
        inputs = tuple(np.ascontiguousarray(values[::every]) for values in self.inputs)
        residual = None if self.residual is None else self.residual[::every]
        return Observations(inputs, tuple(range(len(inputs[0]))), residual, self.examples)


def observe(
    library: DualLibrary, data: CalibrationData, sites: Mapping[str, Site], progress=None
) -> dict[str, Observations]:
    """Run the dense model over the data and collect what each site reads.

    Parameters
    ----------
    library : DualLibrary
        Built with ``ExposeInputs``: further outputs give the sites' inputs.
    data : CalibrationData
    sites : mapping of str to Site
        The sites that it gives the inputs of.
    progress : callable, optional
        Called with ``(calls done, calls in all)``.
    """
    names = [name.split(".") for name in library.metadata.observed]
    collected = {name: _Collected(site, data.calls) for name, site in sites.items()}
    sequences = any(part == "y" for _, part in names)
    # A call of a recurrent layer may be a sequence, of which each vector counts.
    vectors = data.vectors_per_call if sequences else 1
    most, length = (max(1, n // vectors) for n in (_most_vectors(sites.values()), RUN))
    share, carried = min(1.0, most / data.calls), bool(library.metadata.states)
    done, following = 0, False
    for stream in data.streams:
        run, following = library.stream(), False
        for call in stream:
            run(*call)
            # Of every so many runs one, evenly spread.
            keep = int((done // length + 1) * share) > int(done // length * share)
            if keep:
                seen: dict[str, dict[str, np.ndarray]] = {name: {} for name, _ in names}
                for (name, part), value in zip(names, library.last_extras(), strict=True):
                    seen[name][part] = value
                for name, found in collected.items():
                    found.add(seen[name], following)
            following = keep and (carried or not sequences)
            done += 1
            if progress:
                progress(done, data.calls)
    return {name: found.observations() for name, found in collected.items()}


def _most_vectors(sites: Iterable[Site]) -> int:
    """Return how many vectors are kept of each layer: more of recurrent ones, which can be trained through time."""
    widths = [site.n_inputs + site.hidden * (2 if site.kind == "lstm" else 1) for site in sites if site.hidden]
    return max(MAX_SAMPLES, min(MAX_STEPS, STEP_VALUES // max(widths))) if widths else MAX_SAMPLES


class _Collected:
    """What one site read in the calls so far, of `calls`; of an image that a convolution reads, some patches."""

    def __init__(self, site: Site, calls: int) -> None:
        self._site, self._random = site, np.random.default_rng(0)
        self._patches = max(1, min(MAX_SAMPLES, PATCH_VALUES // site.n_inputs) // calls)
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._runs: list[int] = []
        self._residuals: list[np.ndarray] = []
        self._examples: list[tuple[np.ndarray, ...]] = []
        self._count = 0

    def add(self, seen: dict[str, np.ndarray], following: bool) -> None:
        """Add a call; `following` says that it goes on where the last one added ended."""
        if not self._site.hidden:
            self._keep(tuple(value for _, value in sorted(seen.items())))
        if "y" in seen:
            batch = seen["0"].shape[1]
            for sample in range(batch):
                self._append(_over_time(self._site, seen, sample), following and batch == 1)
        elif self._site.conv:
            self._append((self._some_patches(*(value for _, value in sorted(seen.items()))),), False)
        else:
            self._append(tuple(value.reshape(-1, value.shape[-1])[-1:] for _, value in sorted(seen.items())), following)

    def _keep(self, values: tuple[np.ndarray, ...]) -> None:
        """Keep a call as an example, if there is room."""
        size, count = sum(value.nbytes for value in values), len(self._examples)
        if count < EXAMPLES and (not count or (count + 1) * size <= EXAMPLE_BYTES):
            self._examples.append(tuple(value.copy() for value in values))

    def _some_patches(self, images: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
        """Return what randomly drawn pixels of a convolution's output see, ``float32 (patches, inputs)``."""
        conv = self._site.conv
        (top, left, bottom, right), (down, across) = conv.padding, conv.dilation
        padded = np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
        pixels = conv.batch * conv.out_height * conv.out_width
        drawn = self._random.choice(pixels, min(self._patches, pixels), replace=False)
        if residual is not None:
            self._residuals.append(residual.reshape(pixels, conv.outputs)[drawn])
        image, row, column = np.unravel_index(drawn, (conv.batch, conv.out_height, conv.out_width))
        rows = (row * conv.strides[0])[:, None, None] + (np.arange(conv.kernel[0]) * down)[:, None]
        columns = (column * conv.strides[1])[:, None, None] + np.arange(conv.kernel[1]) * across
        return padded[image[:, None, None], rows, columns].reshape(len(drawn), -1)

    def _append(self, values: tuple[np.ndarray, ...], following: bool) -> None:
        if not following:
            self._runs.append(self._count)
        self._parts.append(values)
        self._count += len(values[0])

    def observations(self) -> Observations:
        return Observations(
            tuple(np.concatenate(arrays) for arrays in zip(*self._parts, strict=True)),
            tuple(self._runs),
            np.concatenate(self._residuals) if self._residuals else None,
            tuple(self._examples),
        )


def _over_time(site: Site, seen: dict[str, np.ndarray], sample: int) -> tuple[np.ndarray, ...]:
    """Return what a recurrent layer read at each step of a sequence: the input, and the states before the step."""
    x = seen["0"][:, sample]
    h = np.concatenate([seen["1"][:, sample], seen["y"][:-1, 0, sample]])
    if site.kind != "lstm":
        return x, h
    # The cell state is in no output, but all gates follow from inputs and states h, which are.
    gates = x @ site.weight.T + site.bias + h @ site.recurrence.T + site.recurrent_bias
    take, _, keep, new = np.split(gates, 4, axis=1)
    take, keep, new = expit(take), expit(keep), np.tanh(new)
    c = np.empty_like(h)
    before = seen["2"][0, sample]
    for t in range(len(x)):
        c[t] = before
        before = keep[t] * before + take[t] * new[t]
    return x, h, c
