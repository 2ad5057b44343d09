"""What a build finds: its own record, a near one, one of another CPU, none; other versions are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schedules.cpu import ISAS
from schedules.families import Workload, default_knobs
from schedules.history import Recorder, apply_history, chosen_knobs
from schedules.knobs import RowKnobs
from tvm_dual.errors import DataError
from tvm_dual.tuning import records
from tvm_dual.tuning.lookup import Choices, read_logs
from tvm_dual.tuning.manifest import FILE, make_manifest, read_manifest
from tvm_dual.tuning.records import Record

KNOBS = RowKnobs(side_by_side=2, ahead=0, unroll=2)


def workload(*shape: int, family: str = "rows_int8", threads: int = 1) -> Workload:
    return Workload(family, shape, "avx2", threads)


def write(logs, tuned: Workload, knobs: RowKnobs = KNOBS, verdict: bool = True, **manifest) -> None:
    found = replace(make_manifest("avx2"), **manifest)
    found.write(found.folder(logs))
    values = {"side_by_side": knobs.side_by_side, "ahead": knobs.ahead, "unroll": knobs.unroll}
    record = Record(tuned, values, 1e-6, 2e-6, 0.0, "2026-01-01T00:00:00+00:00", verdict=verdict)
    records.append(found.folder(logs), [record])


def choose(logs, wanted: Workload):
    return read_logs(logs, "avx2").choose(wanted)


def test_a_kernel_gets_the_knobs_of_its_record(tmp_path):
    write(tmp_path, workload(600, 513, 1))
    choices = Choices(read_logs(tmp_path, "avx2"))
    assert choices.knobs(workload(600, 513, 1)) == KNOBS
    (made,) = choices.made.values()
    assert (made.kernel, made.origin) == ("rows_int8 600x513x1", "tuned")


def test_the_latest_verdict_counts(tmp_path):
    write(tmp_path, workload(600, 513, 1))
    write(tmp_path, workload(600, 513, 1), RowKnobs(side_by_side=8))
    assert choose(tmp_path, workload(600, 513, 1)).knobs["side_by_side"] == 8


def test_without_a_verdict_a_kernel_is_not_tuned(tmp_path):
    write(tmp_path, workload(600, 513, 1), verdict=False)
    found = choose(tmp_path, workload(600, 513, 1))
    assert (found.origin, found.source) == ("default", "no record")


@pytest.mark.parametrize(
    "other",
    [
        workload(600, 513, 0),
        workload(600, 513, 1, family="rows_fp32"),
        workload(600, 513, 1, threads=2),
        workload(2000, 513, 1),
    ],
)
def test_records_of_other_kernels_are_no_use(tmp_path, other):
    write(tmp_path, other)
    assert choose(tmp_path, workload(600, 513, 1)).origin == "default"


def test_the_nearest_shape_is_transferred_and_labelled(tmp_path):
    write(tmp_path, workload(1000, 513, 1), RowKnobs(side_by_side=8))
    write(tmp_path, workload(620, 500, 1))
    found = choose(tmp_path, workload(600, 513, 1))
    assert (found.origin, found.knobs["side_by_side"]) == ("transferred", 2)
    assert found.source.startswith("from rows_int8 620x500x1, ")


def test_records_of_another_cpu_are_transferred_and_come_last(tmp_path):
    write(tmp_path, workload(600, 513, 1), RowKnobs(side_by_side=8), cpu="other")
    found = choose(tmp_path, workload(600, 513, 1))
    assert (found.origin, found.knobs["side_by_side"]) == ("transferred", 8)
    assert found.source.startswith("avx2-other-")
    write(tmp_path, workload(620, 500, 1))
    assert choose(tmp_path, workload(600, 513, 1)).knobs["side_by_side"] == 2


def test_records_of_another_tvm_are_refused_by_name(tmp_path):
    write(tmp_path, workload(600, 513, 1), versions={"apache-tvm": "0.26.0", "apache-tvm-ffi": "0.1"})
    found = choose(tmp_path, workload(600, 513, 1))
    assert found.origin == "default"
    assert "refused: measured with apache-tvm 0.26.0" in found.source


def test_a_folder_without_a_readable_manifest_is_refused(tmp_path):
    write(tmp_path, workload(600, 513, 1))
    (folder,) = tmp_path.iterdir()
    (folder / FILE).write_text('{"isa": ')
    assert "no manifest" in choose(tmp_path, workload(600, 513, 1)).source


def test_records_of_another_level_are_not_looked_at(tmp_path):
    write(tmp_path, workload(600, 513, 1), isa="avx512")
    assert read_logs(tmp_path, "avx2").logs == ()


def test_kernels_of_a_level_with_tiles_are_those_tuned_without(tmp_path):
    shape = (600, 513, 1)
    write(tmp_path, Workload("rows_int8", shape, "avx512_vnni", 1), isa="avx512_vnni")
    choices = Choices(read_logs(tmp_path, "amx"))
    with apply_history(choices):
        assert chosen_knobs("rows_int8", ISAS["amx"], shape, 1) == KNOBS
    (made,) = choices.made.values()
    assert made.origin == "tuned"


def test_a_folder_that_is_named_must_be_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_logs(tmp_path / "nowhere", "avx2")


def test_a_manifest_comes_back(tmp_path):
    manifest = make_manifest("avx2")
    manifest.write(tmp_path / "a" / "b")
    assert read_manifest(tmp_path / "a" / "b") == manifest
    assert manifest.caches["L2"] > manifest.caches["L1"]
    with pytest.raises(DataError, match="cannot be written"):
        manifest.write(tmp_path / "a" / "b" / FILE)


def test_kernels_get_the_defaults_outside_the_scope_of_a_history(tmp_path):
    write(tmp_path, workload(600, 513, 1))
    level = workload(1).level
    with apply_history(Choices(read_logs(tmp_path, "avx2"))):
        inside = chosen_knobs("rows_int8", level, (600, 513, 1), 1)
    assert (inside, chosen_knobs("rows_int8", level, (600, 513, 1), 1)) == (
        KNOBS,
        default_knobs(workload(600, 513, 1)),
    )


def test_a_recorder_notes_each_kernel_once():
    recorder, level = Recorder(), workload(1).level
    with apply_history(recorder):
        for n in (5, 6, 5):
            assert chosen_knobs("rows_int8", level, (n, 7, 0), 1) == default_knobs(workload(n, 7, 0))
    assert list(recorder.workloads) == [workload(5, 7, 0), workload(6, 7, 0)]
