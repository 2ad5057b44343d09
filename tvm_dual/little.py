"""Little modules: a projection of a site's inputs and a ridge fit of its pre-activations.

The dual-module paper (Liu et al., ICML 2020) projects with a sparse ternary random matrix and
trains the little weights by gradient descent on the squared error of the pre-activations. The
error is linear in those weights, so the optimum has a closed form (ridge regression); it is used
here. Two projections fitted to the data stand beside the random one: the principal directions of
the inputs, and reduced-rank regression (Izenman, 1975), which takes the directions of the input
that matter most for the pre-activations. In quality per byte read the last is by far the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from relay_passes.products import LittleModule
from schedules.quantize import clip_rows, stored_rows
from tvm_dual.errors import PlanError

PROJECTIONS = ("reduced_rank", "pca", "random")
#: Bits of little weights; 32 is float32, projections and inputs included.
LITTLE_BITS = (32, 8, 4, 2)
#: Share of the mean input variance added to every direction before a system is solved.
RIDGE = 1e-4
#: Share (as an exponent) of a direction's weight that its activation takes over. Measured on NSNet2's
#: sites at 4 bits: 0.75 adds 9 % to the error of 8 bits, 0.5 and 1 add 12 %, 0 adds 30 to 60 %.
MOVED = 0.75


@dataclass(frozen=True, eq=False)
class FittedLittle:
    """A little module and how far off it is.

    Attributes
    ----------
    module : LittleModule
    spread : ndarray, float32, (n,)
        Standard deviation of each row's error on the calibration data.
    """

    module: LittleModule
    spread: np.ndarray


def random_projection(k: int, n_inputs: int, seed: int) -> np.ndarray:
    """Return the paper's sparse ternary projection, ``float32 (k, n_inputs)``.

    Entries are -1 and 1 with probability 1/6 each, else 0, times ``sqrt(3 / k)`` (Achlioptas, 2003).
    """
    rng = np.random.default_rng(seed)
    return (rng.choice([-1.0, 0.0, 1.0], (k, n_inputs), p=[1 / 6, 2 / 3, 1 / 6]) * np.sqrt(3 / k)).astype("float32")


def dimensions_for(epsilon: float, rows: int) -> int:
    """Return the paper's number of dimensions, ``4 ln n / (e^2 / 2 - e^3 / 3)``, for `rows` outputs."""
    return int(4 * np.log(rows) / (epsilon**2 / 2 - epsilon**3 / 3))


def fit_little(
    inputs: list[np.ndarray],
    targets: np.ndarray,
    k: int,
    *,
    projection: str = "reduced_rank",
    bits: int = 8,
    importance: np.ndarray | None = None,
    seed: int = 0,
) -> FittedLittle:
    """Fit a little module.

    Parameters
    ----------
    inputs : list of ndarray, float32, (samples, n_inputs)
        The vectors a site reads: its input, and a recurrent state if that is predicted from too.
    targets : ndarray, float32, (samples, n)
        The big module's pre-activations.
    k : int
        Directions that the inputs are projected to.
    projection : str
        One of `PROJECTIONS`.
    bits : int
        Precision of the little weights, one of `LITTLE_BITS`.
    importance : ndarray, float32, (n,), optional
        How much an error of each row matters; directs the reduced-rank projection.
    seed : int
        Of the random projection.

    Raises
    ------
    PlanError
        If `projection` or `bits` is not known.
    """
    if projection not in PROJECTIONS or bits not in LITTLE_BITS:
        raise PlanError(
            f"little module: projection {projection!r} at {bits} bits; accepted: {', '.join(PROJECTIONS)} "
            f"at {', '.join(map(str, LITTLE_BITS))} bits"
        )
    x = np.concatenate(inputs, axis=1)
    mean, centered = x.mean(axis=0), x - x.mean(axis=0)
    covariance = (centered.T @ centered).astype("float64") / len(x)
    k = min(k, x.shape[1])
    if projection == "random":
        directions = random_projection(k, x.shape[1], seed)
    elif projection == "pca":
        directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :k].T
    else:
        directions = _reduced_rank(covariance, centered.T @ (targets - targets.mean(axis=0)) / len(x), k, importance)
    directions = _scaled(directions, covariance, centered, targets)
    splits = np.cumsum([a.shape[1] for a in inputs])[:-1]
    projections = tuple(np.ascontiguousarray(p) for p in np.split(directions, splits, axis=1))
    stored = np.concatenate([stored_rows(p, max(bits, 8)) for p in projections], axis=1)
    center = (stored @ mean).astype("float32")
    z = x @ stored.T - center
    if bits == 32:
        weight = ridge(z, targets)
    else:
        z = _as_bytes(z)
        weight = clip_rows(ridge(z, targets), bits, (z**2).mean(axis=0))
    residual = targets - z @ stored_rows(weight, bits).T
    bias = residual.mean(axis=0).astype("float32")
    module = LittleModule(projections, center, weight, bias, bits)
    return FittedLittle(module, residual.std(axis=0).astype("float32"))


def fit_responses(
    x: np.ndarray, targets: np.ndarray, weight: np.ndarray, k: int, importance: np.ndarray
) -> FittedLittle:
    """Fit a float32 little module of a layer that reads many more values than it gives, such as a convolution.

    It is reduced-rank regression, as in `fit_little`, by way of the targets: these are linear in the inputs, so the
    best directions of the inputs follow from the principal directions of the targets, weighted by importance, without
    the covariance of the inputs (Zhang et al., 2015, for convolutions).

    Parameters
    ----------
    x : ndarray, float32, (samples, n_inputs)
    targets : ndarray, float32, (samples, n)
        ``x @ weight.T`` and a bias.
    weight : ndarray, float32, (n, n_inputs)
    k : int
        Directions.
    importance : ndarray, float32, (n,)
        How much an error of each row matters.
    """
    scale, k = np.maximum(importance, 1e-6 * max(importance.max(), 1e-30)), min(k, *weight.shape)
    if len(weight) > x.shape[1]:
        principal = _principal_of_products(x - x.mean(axis=0), weight * scale[:, None], k)
    else:
        principal = _principal((targets - targets.mean(axis=0)) * scale, k)
    projection = ((principal * scale[:, None]).T @ weight).astype("float32")
    projected = x @ projection.T
    center = projected.mean(axis=0)
    z = projected - center
    rows = ridge(z, targets)
    residual = targets - z @ rows.T
    module = LittleModule((projection,), center, rows, residual.mean(axis=0).astype("float32"), 32)
    return FittedLittle(module, residual.std(axis=0).astype("float32"))


def _principal(centered: np.ndarray, k: int) -> np.ndarray:
    """Return the `k` principal directions of samples whose mean is zero, ``(n, k)``, the strongest first."""
    n = centered.shape[1]
    covariance = (centered.T @ centered).astype("float64") / len(centered)
    return eigh(covariance, subset_by_index=[n - k, n - 1])[1][:, ::-1]


def _principal_of_products(centered: np.ndarray, weight: np.ndarray, k: int) -> np.ndarray:
    """Return those of ``centered @ weight.T``, of more columns than `centered` has, by matrices of its size.

    Of 6,625 outputs of 120 inputs the other way takes minutes.
    """
    values, vectors = np.linalg.eigh((centered.T @ centered).astype("float64") / len(centered))
    # Columns that the products' covariance is the sum of squares of.
    columns = weight @ (vectors * np.sqrt(np.maximum(values, 0)))
    inputs = len(values)
    strongest = eigh(columns.T @ columns, subset_by_index=[inputs - k, inputs - 1])[1][:, ::-1]
    directions = columns @ strongest
    return directions / np.maximum(np.linalg.norm(directions, axis=0), 1e-30)


def _reduced_rank(covariance: np.ndarray, cross: np.ndarray, k: int, importance: np.ndarray | None) -> np.ndarray:
    """Return the `k` input directions that explain most of the targets, ``(k, n_inputs)``."""
    values, vectors = np.linalg.eigh(covariance)
    # At least something, for inputs that never change.
    root = np.sqrt(np.maximum(values, 0) + max(RIDGE * values.mean(), 1e-12))
    explained = (vectors / root).T @ cross.astype("float64")
    if importance is not None:
        explained = explained * importance
    # The left singular vectors, through the smaller Gram matrix.
    n = len(explained)
    strongest = eigh(explained @ explained.T, subset_by_index=[n - k, n - 1], overwrite_a=True)[1][:, ::-1]
    return (vectors / root @ strongest).T


def _scaled(directions: np.ndarray, covariance: np.ndarray, centered: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Give each direction the size that suits quantization, ``float32 (k, n_inputs)``.

    At unit variance the leading directions have by far the largest weights and set every row's scale,
    so that 4 bits leave little of the others. Moving a share of a direction's weight into its
    activation, which has a byte, evens the weights out (the idea of SmoothQuant, Xiao et al., ICML
    2023, equation 4, for the two factors of a low-rank product).
    """
    deviation = np.sqrt(np.maximum(((directions @ covariance) * directions).sum(axis=1), 1e-12))
    directions = (directions / deviation[:, None]).astype("float32")
    size = np.linalg.norm(ridge(centered @ directions.T, targets), axis=0)
    return directions * np.maximum(size / max(size.max(), 1e-30), 1e-6)[:, None].astype("float32") ** MOVED


def ridge(z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return weights, float32 ``(n, k)``, of the ridge regression from `z` (samples, k) to centered `targets`."""
    # The products in float32, where the time goes; the small system in float64.
    centered = z - z.mean(axis=0)
    gram = (centered.T @ centered).astype("float64") / len(z)
    gram[np.diag_indices_from(gram)] += max(RIDGE * np.trace(gram) / len(gram), 1e-12)
    cross = (centered.T @ targets).astype("float64") / len(z)
    return np.linalg.solve(gram, cross).T.astype("float32")


def _as_bytes(z: np.ndarray) -> np.ndarray:
    """Quantize each sample as the kernel does: symmetrically, to signed bytes."""
    scale = np.maximum(np.abs(z).max(axis=1, keepdims=True), 1e-30) / 127
    return (np.rint(z / scale) * scale).astype("float32")
