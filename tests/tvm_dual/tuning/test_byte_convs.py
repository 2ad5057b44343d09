"""Kernels of convolutions on bytes: listed for a model, tuned, and found by its next build."""

from __future__ import annotations

import numpy as np
import pytest

from schedules.conv2d_lines import ByteConv
from tests.tvm_dual.convolutions import blocks_builder
from tvm_dual.options import AdvancedOptions
from tvm_dual.tuning.api import tune_kernels
from tvm_dual.tuning.workloads import model_workloads

#: A level that every machine runs, and that has no AMX tiles, for which there are no records.
LEVEL = "avx2"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Return what planning compares of a model on bytes, and how it uses that."""
    model = blocks_builder(LEVEL, logs=tmp_path_factory.mktemp("none")).model("int8", AdvancedOptions(dimensions=16))
    found = model_workloads(model, None, lambda *_: None)
    return {workload: usage for workload, usage in found.items() if workload.family == "conv2d_int8"}


def test_every_convolution_is_listed_with_its_few_channels(kernels):
    convs = [ByteConv.of_shape(workload.shape) for workload in kernels]
    outputs = [byte.conv.outputs for byte in convs]
    assert 16 in outputs and max(outputs) == 64 and {byte.source for byte in convs} == {"uint8", "float32"}
    assert all(usage.density == 1 for usage in kernels.values())


def test_a_build_takes_tiles_from_records(kernels, tmp_path):
    tune_kernels(kernels, LEVEL, trials=3, logs=tmp_path)
    options = AdvancedOptions(mode="dense")
    builder = blocks_builder(LEVEL, logs=tmp_path)
    tuned = builder.build("int8", options=options, max_drop=1.0)
    plan = tuned.report.plan
    origins = [choice.origin for choice in plan.kernels if choice.kernel.startswith("conv2d_int8")]
    assert len(origins) > 1 and set(origins) == {"tuned"}
    empty = tmp_path / "empty"
    empty.mkdir()
    default = blocks_builder(LEVEL, logs=empty).build("int8", plan=plan)
    assert "default" in {choice.origin for choice in default.report.plan.kernels}
    for call in builder.model().data.streams[0][:3]:
        np.testing.assert_allclose(tuned(*call), default(*call), rtol=1e-5, atol=1e-5)
