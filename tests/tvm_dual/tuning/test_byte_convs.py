"""Kernels of convolutions on bytes: listed for a model, tuned, and found by its next build."""

from __future__ import annotations

import numpy as np
import pytest

from relay_passes.conv2d_gated_bytes_stage import chosen_gated_tiles
from schedules.conv2d_gated_tiles import default_gated_tiles
from schedules.conv2d_lines import ByteConv
from schedules.conv2d_shape import Conv2d
from schedules.cpu import ISAS
from schedules.history import apply_history
from schedules.knobs import GatedDotTile
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual.options import AdvancedOptions
from tvm_dual.tuning.api import tune_kernels
from tvm_dual.tuning.workloads import model_workloads

#: A level that every machine runs, and that has no AMX tiles, for which there are no records.
LEVEL = "avx2"


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Return what planning compares of a model by precision, and how the model uses that."""
    builder, options = blocks_builder(LEVEL, logs=tmp_path_factory.mktemp("none")), AdvancedOptions(dimensions=16)
    return {each: model_workloads(builder.model(each, options), None, lambda *_: None) for each in ("int8", "fp32")}


@pytest.fixture(scope="module")
def kernels(listed):
    """Return the convolutions of every pixel, of bytes."""
    return {workload: usage for workload, usage in listed["int8"].items() if workload.family == "conv2d_int8"}


@pytest.mark.parametrize(
    ("precision", "family"), [("int8", "conv2d_gated_int8"), ("fp32", "conv2d_gated"), ("fp32", "conv2d_single")]
)
def test_gates_are_listed_at_the_share_that_calibration_opens(listed, precision, family):
    shares = [usage.density for workload, usage in listed[precision].items() if workload.family == family]
    assert len(shares) >= 2 and all(0 < share < 1 for share in shares)


def test_tiles_of_gates_on_bytes_are_those_of_records():
    byte = ByteConv(Conv2d(1, 12, 11, 64, 64, (3, 3), padding=(1, 1, 1, 1)), "uint8", "uint8")

    class Known:
        def knobs(self, workload):
            return GatedDotTile(2, 4, 1) if workload.shape[-3:] == (16, 1, 1) else None

    with apply_history(Known()):
        tiles = chosen_gated_tiles(ISAS[LEVEL], byte, 16, 1)
    assert (tiles.open.pixels, tiles.open.rows, tiles.spread.pixels) == (2, 4, 1)
    assert chosen_gated_tiles(ISAS[LEVEL], byte, 16, 1) == default_gated_tiles(ISAS[LEVEL], byte, 16)


def test_every_convolution_is_listed_with_its_few_channels(kernels):
    convs = [ByteConv.of_shape(workload.shape) for workload in kernels]
    outputs = [byte.conv.outputs for byte in convs]
    assert 16 in outputs and max(outputs) == 64 and {byte.source for byte in convs} == {"uint8", "float32"}
    assert all(usage.density == 1 for usage in kernels.values())


def test_a_build_takes_tiles_from_records(kernels, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    builder = blocks_builder(LEVEL, logs=empty)
    default = builder.build("int8", options=AdvancedOptions(mode="dense"), max_drop=1.0)
    plan = default.report.plan
    assert "default" in {choice.origin for choice in plan.kernels}
    used = {choice.kernel for choice in plan.kernels}
    some = {workload: usage for workload, usage in kernels.items() if str(workload) in used}
    tune_kernels(some, LEVEL, trials=3, logs=tmp_path)
    tuned = blocks_builder(LEVEL, logs=tmp_path).build("int8", plan=plan)
    origins = [choice.origin for choice in tuned.report.plan.kernels if choice.kernel.startswith("conv2d_int8")]
    assert len(origins) > 1 and set(origins) == {"tuned"}
    for call in builder.model().data.streams[0][:3]:
        np.testing.assert_allclose(tuned(*call), default(*call), rtol=1e-5, atol=1e-5)
