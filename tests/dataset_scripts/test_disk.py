"""How much disk a conversion needs: the estimates, and the refusals."""

import shutil
from types import SimpleNamespace

import duckdb
import pytest
from helpers_convert import COLUMNS, check_set, json_lines, output, pack, shop, simple, tree, write

from dataset_scripts import disk
from dataset_scripts.convert import convert
from dataset_scripts.database import Database
from dataset_scripts.sources import recognise
from recbole_flr.errors import DataError


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_are_estimated_from_the_first_bytes(tmp_path, monkeypatch, suffix):
    rows = shop(200, 60)
    path = write(tmp_path / f"log.json{suffix}", rows)
    monkeypatch.setattr(disk, "_SAMPLE", min(20_000, path.stat().st_size * 4 // 5))
    lines, size = disk.estimated_lines(recognise(path))
    assert lines == pytest.approx(len(rows), rel=0.25) and size == pytest.approx(len(json_lines(rows)), rel=0.25)
    monkeypatch.setattr(disk, "_SAMPLE", 1 << 20)
    assert disk.estimated_lines(recognise(path)) == (len(rows) + 1, len(json_lines(rows)))


def test_lines_of_parquet_are_exact(tmp_path):
    duckdb.execute(f"COPY (SELECT range AS a FROM range(12345)) TO '{tmp_path}/log.parquet'")
    assert disk.estimated_lines(recognise(tmp_path / "log.parquet"))[0] == 12345


def test_a_broken_file_is_left_to_the_reader(tmp_path):
    path = tmp_path / "log.json.gz"
    path.write_bytes(pack(b'{"a": 1}\n' * 9, "x.gz")[:-12] + b"\xff" * 12)
    source = SimpleNamespace(path=path, format="jsonl", compression="zstd")
    assert disk.estimated_lines(source) == (0, 0)


def test_the_estimates_hold_for_a_conversion(tmp_path):
    files = simple(tmp_path, 40, 40)
    report = convert(files[0], "s", tmp_path / "out", meta=files[1], min_items=0)
    written = sum((tmp_path / "out" / "s" / f"s.{kind}").stat().st_size
                  for kind in ("train.inter", "valid.inter", "test.inter", "inter", "item"))
    assert 0.8 * written < report["disk_output"] < 1.6 * written
    assert report["disk_tables"] == disk.tables(1601, (3, 3))  # ids this short stand in the rows


def test_long_ids_take_more():
    assert disk.tables(1000, (12, 12)) + 20_000 == disk.tables(1000, (20, 12)) == disk.tables(1000, (8, 20))
    assert disk.tables(1000) > disk.tables(1000, (36, 10))


def test_a_disk_too_small_for_the_tables_is_refused_before_reading(tmp_path, monkeypatch):
    path = write(tmp_path / "log.json", shop(200, 50))
    before = tree(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(DataError) as caught:
        convert(path, "s", tmp_path / "out", columns=COLUMNS, memory_limit="100KB")
    assert "the tables of about 10,001 reviews beyond --memory-limit 100KB may need" in str(caught.value)
    assert "but 1.0 kB are free there; make room, or choose another --out" in str(caught.value)
    assert tree(tmp_path) == before


def test_a_disk_too_small_for_the_files_is_refused_before_writing(tmp_path, monkeypatch):
    path = write(tmp_path / "log.json", shop())
    before = tree(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="the files of the data set may need .* but 1.0 kB are free"):
        convert(path, "s", tmp_path / "out", columns=COLUMNS, k=1)
    assert tree(tmp_path) == before


def test_the_folder_need_not_exist(tmp_path):
    disk.check(tmp_path / "a" / "b", 1, "files")
    with pytest.raises(DataError, match="may need 1000000000.0 GB"):
        disk.check(tmp_path / "a" / "b", 10**18, "files")


def test_large_tables_are_made_on_disk_and_give_the_same_files(tmp_path, monkeypatch):
    """From four times the memory limit on, and not before."""
    path, made = write(tmp_path / "log.json", shop(20, 20)), []
    keep_on_disk = Database.keep_on_disk
    monkeypatch.setattr(Database, "keep_on_disk", lambda self: (made.append(self.memory_bytes()), keep_on_disk(self)))
    reports = []
    for name, factor in (("memory", 1e9), ("disk", 0)):
        monkeypatch.setattr("dataset_scripts.convert._FAR_MORE", factor)
        reports.append(convert(path, "s", tmp_path / name, columns=COLUMNS))
        check_set(reports[-1], tmp_path / name)
    assert len(made) == 1 and made[0] == pytest.approx(200e6, rel=0.01)
    assert {**reports[0], "folder": ""} == {**reports[1], "folder": ""}
    assert output(tmp_path / "memory") == output(tmp_path / "disk")
