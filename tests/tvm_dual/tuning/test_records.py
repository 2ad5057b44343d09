"""The log: appended whole, read line by line, never lost."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from schedules.families import Workload
from tvm_dual.errors import DataError
from tvm_dual.tuning import records
from tvm_dual.tuning.records import FAILURES, FILE, Record

RECORD = Record(
    workload=Workload("rows_int8", (8, 9, 1), "avx2", 1),
    knobs={"side_by_side": 2, "ahead": 0, "unroll": 1},
    density=0.5,
    vectors=1,
    seconds=1e-6,
    default_seconds=2e-6,
    noise=0.01,
    error="",
    verdict=False,
    seed=3,
    time="2026-01-01T00:00:00+00:00",
)


def test_records_come_back(tmp_path):
    failed = replace(RECORD, error="line one\nline two", seconds=0.0)
    records.append(tmp_path, [RECORD, failed])
    assert records.read(tmp_path) == [RECORD, failed]
    assert "line two" in (tmp_path / FAILURES).read_text()


def test_no_log_holds_no_records(tmp_path):
    assert records.read(tmp_path) == []


@pytest.mark.parametrize("damage", ['{"workload": {"fam', "[]", '{"knobs": 1}', "\x00\xff"])
def test_a_damaged_line_is_skipped_by_name_and_the_rest_is_read(tmp_path, damage):
    records.append(tmp_path, [RECORD])
    with (tmp_path / FILE).open("a", encoding="latin-1") as file:
        file.write(damage)
    records.append(tmp_path, [RECORD])
    with pytest.warns(UserWarning, match=r"records\.jsonl, line 2: skipped"):
        assert records.read(tmp_path) == [RECORD, RECORD]


def test_records_of_knobs_that_are_no_more_are_skipped(tmp_path):
    records.append(tmp_path, [replace(RECORD, knobs={"tiles": 3}), RECORD])
    with pytest.warns(UserWarning, match="line 1"):
        assert records.read(tmp_path) == [RECORD]


def test_a_growing_log_is_read_on(tmp_path, monkeypatch):
    log, other = records.Log(tmp_path), replace(RECORD, workload=replace(RECORD.workload, threads=7))
    assert log.of(RECORD.workload) == []
    records.append(tmp_path, [RECORD, other])
    assert (log.of(RECORD.workload), log.of(other.workload)) == ([RECORD], [other])
    parsed, parse = [], json.loads
    monkeypatch.setattr("tvm_dual.tuning.records.json.loads", lambda line: parsed.append(line) or parse(line))
    records.append(tmp_path, [replace(RECORD, seed=5)])
    assert [record.seed for record in log.of(RECORD.workload)] == [RECORD.seed, 5] and len(parsed) == 1
    with (tmp_path / FILE).open("a") as file:
        file.write('{"half')
    with pytest.warns(UserWarning, match="line 4: skipped"):
        assert len(log.of(RECORD.workload)) == 2
    records.append(tmp_path, [replace(RECORD, seed=6)])
    with pytest.warns(UserWarning, match="line 4: skipped"):
        assert [record.seed for record in log.of(RECORD.workload)] == [RECORD.seed, 5, 6]
    (tmp_path / FILE).write_text("")
    assert log.of(RECORD.workload) == []


def test_many_writers_do_not_mix_their_lines(tmp_path):
    def write(seed: int) -> None:
        for _ in range(20):
            records.append(tmp_path, [replace(RECORD, seed=seed)] * 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    found = records.read(tmp_path)
    assert sorted(record.seed for record in found) == [seed for seed in range(8) for _ in range(60)]


def test_a_full_disk_is_a_clear_error(tmp_path):
    (tmp_path / FILE).symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device"):
        records.append(tmp_path, [RECORD])


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        records.append(tmp_path, [RECORD])
    with pytest.raises(DataError, match="cannot be read"):
        records.read(tmp_path)
    assert os.listdir(tmp_path) == [FILE]
