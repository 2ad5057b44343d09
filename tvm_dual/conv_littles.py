"""Little modules of convolutions that are no projections, fitted; and what any of them predicts of observed pixels."""

from __future__ import annotations

import numpy as np

from relay_passes.products import LittleModule
from schedules.conv2d_int8 import Affine
from schedules.cpu import Isa
from schedules.quantize import stored_rows
from tvm_dual.byte_little import byte_sums
from tvm_dual.coarse_little import BLOCKS, Blocks, coarse_little, coarse_sums
from tvm_dual.copied_little import copied_little, copied_sums
from tvm_dual.fitting import SiteFit, conv2d_targets
from tvm_dual.gates import unit_weights
from tvm_dual.observations import Observations
from tvm_dual.sites import Site


def fit_copy(
    site: Site, observed: Observations, sites: dict[str, Site], bits: int, source: Affine, isa: Isa
) -> SiteFit:
    """Return a convolution's copy, in the units that its gate works with.

    Parameters
    ----------
    site : Site
    observed : Observations
    sites : dict of Site
        All sites, by name.
    bits : int
        Of the copy's weights.
    source : Affine
        Of the bytes that it reads.
    isa : Isa
        Level that its bytes are for.
    """
    (x,) = observed.inputs
    targets = x @ site.weight.T + site.bias
    little = copied_little(x, site.weight, targets, bits, source, isa, site.conv.runs[1])
    return SiteFit(little, little.spread, unit_weights(site, sites), kind="copy", source=source)


def fit_coarse(site: Site, observed: Observations, sites: dict[str, Site], directions: int) -> SiteFit:
    """Return a convolution's coarse little module, in the units that its gate works with; `sites` are all, by name."""
    weights = unit_weights(site, sites)
    _, importance = conv2d_targets(site, observed, weights)
    little = coarse_little(site, Blocks(site, observed), directions, importance)
    return SiteFit(little, little.spread, weights, kind="coarse")


def predicted(
    site: Site, fit: SiteFit, observed: Observations, most: int, source: Affine | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | float]:
    """Return sums of observed vectors or pixels, what the little module predicts of them, and what is added to both.

    Parameters
    ----------
    site : Site
        A dense layer or a convolution.
    fit : SiteFit
    observed : Observations
    most : int
        Vectors or pixels that are looked at, at most.
    source : Affine, optional
        Of the bytes that a projection on bytes reads.

    Returns
    -------
    ndarray, float32, (pixels, channels)
        Exact sums, bias included.
    ndarray, float32, (pixels, channels)
        Predicted ones.
    ndarray, float32, (pixels, channels), or 0
        The image that is added before the nonlinearity.
    """
    module: LittleModule = fit.little.module
    if fit.kind == "coarse":
        blocks = Blocks(site, observed, min(BLOCKS, -(-most // 4)))
        added = 0.0 if blocks.added is None else blocks.added[blocks.inside]
        return blocks.sums[blocks.inside], coarse_sums(module, blocks)[blocks.inside], added
    x = observed.inputs[0][:most]
    if fit.kind == "copy":
        rough = copied_sums(module, x, fit.source)
    elif source is not None:
        rough = byte_sums(module, x, source)
    else:
        (projection,) = module.projections
        rough = (x @ projection.T - module.center) @ stored_rows(module.weight, module.bits).T + module.bias
    added = 0.0 if observed.residual is None else observed.residual[:most]
    return x @ site.weight.T + site.bias, rough, added
