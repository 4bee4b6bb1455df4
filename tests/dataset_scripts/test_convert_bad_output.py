"""The place of the output: the output is replaced as a whole, or there is one clear error and nothing is changed.

The tests of the command run it in a process of its own, where the disk is full or the folder must not be written.
"""

import errno
import os
import random
import subprocess
import sys

import pytest
from helpers_convert import (
    COLUMNS, COLUMNS_OPTION, CSV_GOOD, FILES, GOOD, ROOT, meta_of, pack, refused, reviews_of, shop, simple, tree, write,
)  # fmt: skip

from dataset_scripts import output as output_module
from dataset_scripts import writing
from dataset_scripts.convert import convert, main
from recbole_flr.errors import ConfigError, DataError

# ---- the place of the output -------------------------------------------------------------------------------------------


def test_an_input_is_not_written_over(tmp_path):
    reviews, meta = simple(tmp_path)
    (tmp_path / "out" / "s").mkdir(parents=True)
    inside = reviews.rename(tmp_path / "out" / "s" / "s.inter")
    refused(tmp_path, "overwritten", inside, ConfigError, meta=meta)
    link = tmp_path / "link"
    link.symlink_to(inside)
    refused(tmp_path, "overwritten", link, ConfigError, meta=meta)
    refused(tmp_path, "overwritten", link, ConfigError, columns=COLUMNS)
    refused(tmp_path, "overwritten", meta, ConfigError, meta=link)


def test_another_set_is_replaced_as_a_whole_and_other_files_stay(tmp_path):
    reviews, meta = simple(tmp_path)
    convert(reviews, "s", tmp_path / "out", meta=meta, min_items=0, k=1)
    convert(reviews, "s", tmp_path / "fresh", meta=meta, min_items=0, k=2, max_history=1)
    (tmp_path / "out" / "s" / "notes.txt").write_text("mine")
    convert(reviews, "s", tmp_path / "out", meta=meta, min_items=0, k=2, max_history=1)
    assert tree(tmp_path / "out") == {**tree(tmp_path / "fresh"), "s/notes.txt": b"mine"}
    refused(tmp_path, "nothing remains", reviews, meta=meta, k=9)


def test_a_file_in_the_place_of_a_folder(tmp_path):
    reviews, meta = simple(tmp_path)
    (tmp_path / "file").write_text("x")
    before = tree(tmp_path)
    for out in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(DataError, match="file"):
            convert(reviews, "s", out, meta=meta, min_items=0)
    with pytest.raises(DataError, match="is a file, but a folder has to be written there"):
        convert(reviews, "file", tmp_path, meta=meta, min_items=0)
    with pytest.raises(DataError, match="cannot write .*File name too long"):
        convert(reviews, "x" * 300, tmp_path, meta=meta, min_items=0)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("at", range(len(FILES)))
def test_a_full_disk_while_writing(tmp_path, monkeypatch, at):
    """The disk may be full at any of the files."""
    reviews, meta = simple(tmp_path)
    written, write_one = [], writing._Hashed.write

    def full(self, data):
        written.append(self._file.name)
        if len(dict.fromkeys(written)) > at:
            self._file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_one(self, data)

    monkeypatch.setattr(writing._Hashed, "write", full)
    refused(
        tmp_path, r"cannot write .*s: No space left on device; nothing was changed. Choose another --out", reviews, meta=meta
    )
    assert len(dict.fromkeys(written)) == at + 1


def test_a_failure_of_ours_leaves_nothing_either(tmp_path, monkeypatch):
    reviews, meta = simple(tmp_path)
    monkeypatch.setattr(output_module, "write_lines", lambda *_: 1 / 0)  # the item file is the last but two of all files
    before = tree(tmp_path)
    with pytest.raises(ZeroDivisionError):
        convert(reviews, "s", tmp_path / "deep" / "out", meta=meta, min_items=0)
    assert tree(tmp_path) == before


# ---- in a process of its own -------------------------------------------------------------------------------------------


def cli(*arguments, prelude="", **options):
    """Runs `python -m dataset_scripts.convert` in a new process, after some lines of Python (`prelude`)."""
    code = f"{prelude}\nimport sys\nfrom dataset_scripts.convert import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, **options
    )


def failed(done, message):
    """Checks that a process ended with status 2, and what it printed."""
    assert done.returncode == 2, done.stderr
    one_line(done.stdout, done.stderr, message)


def one_line(out, err, message):
    """Checks for one line `error: ...` at the end of stderr, and nothing else but the log and the table: no traceback."""
    assert out == ""
    *log, last = err.splitlines()
    assert last.startswith("error: ") and message in last
    assert [line for line in log if not line.startswith(("window ", "lines ", "- ", "metadata lines "))] == []


@pytest.mark.parametrize("what, message", [
    ("k", "nothing remains of 36 reviews"), ("gzip", "reviews.json is a broken gzip file"),
    ("columns", "has no column 'c' (user)"),
    ("name", "name is 'a b'"), ("out", "is a file, but a folder"), ("line", "a\\nb.json: No such file"),
])  # fmt: skip
def test_the_command_line_says_it_in_one_line(tmp_path, capsys, what, message):
    reviews, meta = simple(tmp_path)
    words = {"--reviews": reviews, "--meta": meta, "--name": "s", "--out": tmp_path / "out", "--min-items": 0}
    if what == "k":
        words["--k"] = 7
    elif what == "gzip":
        reviews.write_bytes(pack(GOOD, ".gz")[:-9])
    elif what == "columns":
        words["--columns"] = "user=c,item=asin,time=unixReviewTime,title=asin"
    elif what == "name":
        words["--name"] = "a b"
    elif what == "out":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "s").write_text("x")
    else:
        words["--reviews"], message = tmp_path / "a\nb.json", "a b.json: No such file"
    before = tree(tmp_path)
    words = [str(word) for pair in words.items() for word in pair]
    if what == "k":  # one of them in a process of its own
        failed(cli(*words), message)
    else:
        assert main(words) == 2
        one_line(*capsys.readouterr(), message)
    assert tree(tmp_path) == before


LIMIT = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


def test_no_space_for_the_files(tmp_path):
    """For Python and DuckDB, a limit on the size of files is like a full disk."""
    reviews = write(tmp_path / "r.json.gz", reviews_of(300, 30))
    meta = write(tmp_path / "m.json", meta_of(30))
    before = tree(tmp_path)
    words = ("--reviews", reviews, "--meta", meta, "--name", "s", "--out", tmp_path / "deep" / "out", "--min-items", 0)
    failed(cli(*words, prelude=LIMIT.format(100_000)), "cannot write")
    assert tree(tmp_path) == before
    done = cli(*words, prelude=LIMIT.format(100_000_000))
    assert done.returncode == 0, done.stderr


def test_no_space_for_what_does_not_fit_into_memory(tmp_path):
    """Long random names make a table that has to go to disk."""
    names = [random.Random(number).randbytes(500).hex() for number in range(45_000)]
    log = write(tmp_path / "log.json", [{**row, "customer": name} for row, name in zip(shop(100, 60) * 15, names * 2)])
    before = tree(tmp_path)
    words = ("--reviews", log, "--columns", COLUMNS_OPTION, "--name", "s", "--out", tmp_path / "out", "--memory-limit", "80MB",
             "--k", 1)  # fmt: skip
    threads = "import duckdb; plain = duckdb.connect; duckdb.connect = lambda *a: plain(*a, config={'threads': '2'})"
    failed(cli(*words, prelude=f"{LIMIT.format(200_000)}\n{threads}"), "IO Error: Could not write")
    assert tree(tmp_path) == before


def test_no_space_for_a_copy(tmp_path):
    log = write(tmp_path / "log.csv", "\n".join([*CSV_GOOD[:9], CSV_GOOD[9] + "\r", *CSV_GOOD[10:] * 1000]).encode())
    before = tree(tmp_path)
    words = ("--reviews", log, "--columns", COLUMNS_OPTION, "--name", "s", "--out", tmp_path / "out")
    failed(cli(*words, prelude=LIMIT.format(50_000)), "cannot write")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("deep", ["", "deep"])
def test_a_folder_that_must_not_be_written(tmp_path, deep):
    reviews, meta = simple(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    prelude = "import os"
    if os.geteuid() == 0:  # root may write everywhere, so the child process becomes another user
        prelude = "import os, dataset_scripts.convert; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
        for folder in (tmp_path, *tmp_path.parents[:-2]):  # pytest's folders are private; the other user must read them
            folder.chmod(folder.stat().st_mode | 0o055)
    before = tree(tmp_path)
    words = ("--reviews", reviews, "--meta", meta, "--name", "s", "--out", out / deep, "--no-sliding", "--k", 1)
    failed(cli(*words, prelude=prelude), f"cannot write {out / deep / 's'}: Permission denied; nothing was changed")
    assert tree(tmp_path) == before
