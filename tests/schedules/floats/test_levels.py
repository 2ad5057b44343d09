"""Kernels of floats are the same at all levels of one vector length, so that tests run them at one of these."""

from __future__ import annotations

import pytest
import tvm_ffi

from schedules.coarse import fine_pixels
from schedules.conv2d import conv2d, default_tile
from schedules.conv2d_gate import tile_gate
from schedules.conv2d_gated import default_gated_tile, gated_conv2d
from schedules.conv2d_gated_skip import gated_skip_conv2d
from schedules.conv2d_shape import Conv2d
from schedules.conv2d_single import conv2d_single, default_single_tile
from schedules.conv2d_skip import conv2d_skip, default_skip_tile
from schedules.cpu import ISAS
from schedules.gate import band_gate, gru_candidate_gate, gru_update_gate
from schedules.lstm import lstm_pointwise
from schedules.lstm_gate import lstm_gate

CONV = Conv2d(1, 9, 7, 24, 40, (3, 3), padding=(1, 1, 1, 1), activation="relu")
KERNELS = {
    "conv2d": lambda isa: conv2d(isa, CONV, default_tile(isa, CONV), 2),
    "conv2d_skip": lambda isa: conv2d_skip(isa, CONV, default_skip_tile(isa, CONV), 2),
    "conv2d_gated": lambda isa: gated_conv2d(isa, CONV, default_gated_tile(isa, CONV), 2),
    "conv2d_gated_skip": lambda isa: gated_skip_conv2d(isa, CONV, 2, False),
    "conv2d_single": lambda isa: conv2d_single(isa, CONV, default_single_tile(isa, CONV), 2),
    "tile_gate": lambda isa: tile_gate(isa, 3, 20, 40, 16, 2, True),
    "band_gate": lambda isa: band_gate(isa, 50),
    "gru_update_gate": lambda isa: gru_update_gate(isa, 50, "damage"),
    "gru_candidate_gate": lambda isa: gru_candidate_gate(isa, 50, "damage"),
    "fine_pixels": lambda isa: fine_pixels(isa, CONV, 2),
    "lstm_pointwise": lambda isa: lstm_pointwise(isa, 50),
    "lstm_gate": lambda isa: lstm_gate(isa, 50, "damage"),
}
WIDE = [isa for isa in ISAS.values() if isa.vector_bytes == max(level.vector_bytes for level in ISAS.values())]


@pytest.mark.parametrize("name", KERNELS)
def test_levels_of_one_vector_length_have_the_same_kernels_of_floats(name):
    first, *others = (KERNELS[name](isa) for isa in WIDE)
    assert others and all(tvm_ffi.structural_equal(first, other) for other in others)
    (narrow,) = [KERNELS[name](isa) for isa in ISAS.values() if isa not in WIDE]
    assert not tvm_ffi.structural_equal(first, narrow), "levels of other vectors do not"
