"""Candidates of every family: right at odd sizes, whatever their knobs; a wrong one is found out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from schedules import cpu
from schedules.conv2d_shape import Conv2d
from schedules.families import FAMILIES, Workload, default_knobs, search_space
from tvm_dual.tuning.candidates import Bench
from tvm_dual.tuning.problem import Usage
from tvm_dual.tuning.problems import make_problem

#: By family, a shape with nothing a multiple of a vector, and one that is smaller than a vector.
SHAPES = {
    "rows_int8": [(45, 71, 0), (45, 71, 1), (3, 5, 0)],
    "rows_fp32": [(45, 71, 0), (3, 5, 1)],
    "row_pairs_int8": [(45, 71, 39)],
    "columns_int8": [(71, 45), (3, 5)],
    "columns_fp32": [(71, 45), (3, 5)],
    "little": [(71, 13, 8), (71, 13, 4), (5, 3, 2)],
    "matmul_int8": [(45, 71), (5, 3)],
    "matmul_fp32": [(45, 71), (5, 3)],
    "conv2d": [
        Conv2d(2, 7, 9, 5, 19, (3, 3), padding=(1, 1, 1, 1)).geometry,
        Conv2d(1, 13, 8, 3, 70, (3, 2), (2, 1), (1, 0, 0, 2), (1, 2)).geometry,
        Conv2d(1, 5, 5, 7, 3, (1, 1)).geometry,
    ],
    "conv2d_gated": [
        Conv2d(2, 7, 9, 5, 37, (3, 3), padding=(1, 1, 1, 1)).geometry,
        Conv2d(1, 13, 8, 3, 70, (3, 2), (2, 1), (1, 0, 0, 2), (1, 2)).geometry,
    ],
    "conv2d_gated_int8": [
        (*Conv2d(2, 7, 9, 5, 48, (3, 3), padding=(1, 1, 1, 1)).geometry, 16, 0, 1),
        (*Conv2d(1, 13, 8, 3, 70, (3, 2), (2, 1), (1, 0, 0, 2), (1, 2)).geometry, 32, 1, 0),
        (*Conv2d(1, 9, 7, 64, 64, (3, 3), padding=(1, 1, 1, 1)).geometry, 16, 1, 1),
    ],
    "conv2d_int8": [
        (*Conv2d(2, 7, 9, 5, 19, (3, 3), padding=(1, 1, 1, 1)).geometry, 0, 1),
        (*Conv2d(1, 13, 8, 3, 70, (3, 2), (2, 1), (1, 0, 0, 2), (1, 2)).geometry, 1, 0),
        (*Conv2d(1, 5, 5, 7, 3, (1, 1)).geometry, 1, 1),
    ],
    "conv2d_single": [
        Conv2d(2, 7, 9, 5, 37, (3, 3), padding=(1, 1, 1, 1)).geometry,
        Conv2d(1, 13, 8, 40, 70, (3, 2), (2, 1), (1, 0, 0, 2), (1, 2)).geometry,
    ],
    "conv2d_skip": [
        Conv2d(2, 7, 9, 5, 19, (3, 3), padding=(1, 1, 1, 1)).geometry,
        Conv2d(1, 13, 8, 19, 70, (3, 2), (2, 1), (1, 0, 0, 2), (1, 2)).geometry,
    ],
}
USAGE = Usage(density=0.3, vectors=7)


def corners(workload: Workload) -> list:
    """Return the points of a space at which each knob is least or greatest."""
    values = FAMILIES[workload.family].space(workload)
    ends = ({choices[0], choices[-1]} for choices in values.values())
    kind = FAMILIES[workload.family].knobs
    found = [kind(**dict(zip(values, point, strict=True))) for point in itertools.product(*ends)]
    # Where knobs exclude each other there may be none; then the first and the last points are.
    points = search_space(workload)
    return [knobs for knobs in found if knobs in points] or [points[0], points[-1]]


@pytest.mark.parametrize(("family", "shape"), [(f, shape) for f, shapes in SHAPES.items() for shape in shapes])
def test_whatever_the_knobs_the_result_is_the_reference(isa, family, shape):
    workload = Workload(family, shape, isa.name, 1)
    candidates = list(dict.fromkeys([default_knobs(workload), *corners(workload)]))
    timings = Bench().measure(workload, USAGE, 0, candidates, 2)
    assert [timing.error for timing in timings] == [""] * len(candidates)
    assert all(len(timing.seconds) == 2 and timing.typical > 0 for timing in timings)


def test_every_family_is_covered():
    assert set(SHAPES) == set(FAMILIES)


def test_the_default_is_a_point_of_the_space(isa):
    for family, shapes in SHAPES.items():
        for shape in [*shapes, *((6000, 1500, 1) for _ in range(family == "rows_int8"))]:
            workload = Workload(family, shape, isa.name, 1)
            assert default_knobs(workload) in search_space(workload)


def test_a_wrong_result_is_found_out(isa):
    workload, bench = Workload("rows_fp32", (9, 20, 0), isa.name, 1), Bench()
    (right,) = bench.measure(workload, USAGE, 0, [default_knobs(workload)], 1)
    problem = bench._problem
    wrong = [results.copy() for results in problem.results]
    wrong[0][-1, 3] += 1
    bench._problem = replace(problem, results=wrong)
    (timing,) = bench.measure(workload, USAGE, 0, [default_knobs(workload)], 1)
    assert not right.error
    assert "wrong result 0: off by" in timing.error
    assert timing.seconds == ()


def test_operands_have_the_density_and_are_the_same_for_a_seed():
    workload = Workload("row_pairs_int8", (1000, 70, 40), cpu.native_isa().name, 1)
    first, again, other = (make_problem(workload, Usage(density=0.2), seed) for seed in (1, 1, 2))
    counts = first.after[1].reshape(first.copies, -1)[:, 0]
    assert (counts == 200).all()
    assert all(np.array_equal(a, b) for a, b in zip(first.after, again.after, strict=True))
    assert not np.array_equal(first.after[0], other.after[0])


def test_two_threads_compute_the_same(isa):
    workload = Workload("rows_int8", (301, 64, 1), isa.name, 2)
    (timing,) = Bench().measure(workload, Usage(), 0, [default_knobs(workload)], 1)
    assert timing.error == ""
