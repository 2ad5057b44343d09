"""Convolutions under the gate in PyTorch, and what training makes of their little modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schedules.cpu import ISAS
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual.closed_loss import closed_loss
from tvm_dual.finetuning import can_finetune, finetune
from tvm_dual.gated_tiles import GatedTiles
from tvm_dual.gates import FAR, OPEN
from tvm_dual.options import AdvancedOptions
from tvm_dual.variants import Fits

#: With and without an image that is added.
NAMES = ("conv2d1", "conv2d3")


@pytest.fixture(scope="module")
def fitted():
    """Return by site: the site, its little module, what it read; and the level."""
    builder = blocks_builder()
    model = builder.model("fp32", AdvancedOptions(dimensions=16))
    fits = Fits(model)
    return {n: (model.sites[n], fits.fit(n, ("rows", "dense")), model.observations[n]) for n in NAMES}, ISAS[
        builder.isa
    ]


@pytest.mark.parametrize("gate", ["rows", "singles"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [OPEN, 0.05, 0.3, FAR])
def test_errors_behind_the_gate_are_those_of_numpy(fitted, name, limit, gate):
    by_name, isa = fitted
    site, fit, observed = by_name[name]
    tiles = GatedTiles(torch, site, fit, observed, isa, gate)
    pixels = torch.arange(min(tiles.pixels, 2000))
    errors = tiles.errors(pixels, limit).detach().numpy() * fit.weights
    ((_, wanted),) = closed_loss(site, fit, observed, isa, "damage", [limit], gate=gate)
    np.testing.assert_allclose((errors**2).sum(axis=1).mean(), wanted, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_error(fitted, name):
    by_name, isa = fitted
    site, fit, observed = by_name[name]
    assert can_finetune(site, observed)
    told = []
    tuned = finetune(site, fit, observed, np.array([FAR]), 60, lambda *at: told.append(at), isa=isa)
    ((_, before),), ((_, after),) = (closed_loss(site, found, observed, isa, "damage", [FAR]) for found in (fit, tuned))
    assert after < 0.95 * before
    assert tuned.tuned and told[-1] == (60, 60)
    np.testing.assert_array_equal(tuned.spread, fit.spread)
