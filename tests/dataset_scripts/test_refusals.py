"""A refused conversion says why, with its table: times, encodings, malformed lines, options that contradict each other."""

import codecs
import json
import os
from pathlib import Path

import pytest
from helpers_convert import COLUMNS, COLUMNS_OPTION, DAY, START, check_set, lines, pack, sha256, shop, tree

from dataset_scripts import convert as module
from dataset_scripts.convert import convert, main
from recbole_flr.errors import ConfigError, DataError


def log(folder, rows, encoding="utf-8", name="log.csv"):
    """Writes rows (dicts) as CSV. Returns the path."""
    text = "customer,sku,bought,product\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
    path = folder / name
    path.write_bytes(pack(text.encode(encoding), name))
    return path


def with_times(form):
    return [{**row, "bought": form(row["bought"])} for row in shop()]


def run(path, out, *words):
    return main(["--reviews", str(path), "--columns", COLUMNS_OPTION, "--name", "s", "--out", str(out), *map(str, words)])


@pytest.mark.parametrize(
    "form, said",
    [
        (
            lambda time: f"{(time - START) // DAY + 1:02d}/03/2024",
            r"36 of 36 lines have times that are neither numbers nor ISO dates, such as "
            r"'0\d/03/2024'; say how they are written with --time-format, such as %d/%m/%Y",
        ),
        (
            lambda time: -time,
            "none of its 36 reviews has a usable time: 36 are not positive or lie in the future, read as s since 1970; .*--time",
        ),
        (
            lambda time: f"2024030{(time - START) // DAY + 1}120000",
            "none of its 36 reviews has a usable time.*read as ms since 1970.*--time-format",
        ),
        (
            lambda time: f"2024030{(time - START) // DAY + 1}",
            "36 of 36 times look like dates without separators, such as 20240301; say so with --time-format %Y%m%d",
        ),
    ],
)
def test_times_that_were_not_understood(tmp_path, form, said):
    path = log(tmp_path, with_times(form))
    before = tree(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        convert(path, "s", tmp_path / "out", columns=COLUMNS)
    assert caught.value.report["lines"] == 36 and tree(tmp_path) == before


@pytest.mark.parametrize(
    "form, options",
    [
        (lambda time: f"{(time - START) // DAY + 1:02d}/03/2024", {"time_format": "%d/%m/%Y"}),
        (lambda time: f"2024030{(time - START) // DAY + 1}", {"time_format": "%Y%m%d"}),
        (lambda time: f"2024030{(time - START) // DAY + 1}", {"time_unit": "s"}),  # seconds of the year 1970
        (lambda time: time - START + 20_240_000, {}),  # most of these are no dates
    ],
)
def test_the_same_times_with_the_option_that_the_message_names(tmp_path, form, options):
    report = convert(log(tmp_path, with_times(form)), "s", tmp_path / "out", columns=COLUMNS, **options)
    assert report["kept"] == 36
    check_set(report, tmp_path / "out")


def test_a_few_unreadable_times_are_counted(tmp_path, capsys):
    rows = shop()
    rows[3]["bought"] = rows[8]["bought"] = "soon"
    assert run(log(tmp_path, rows), tmp_path / "out", "--k", 1) == 0
    assert "first in lines 5, 10; 2 with a time that cannot be read" in capsys.readouterr().out


def test_ragged_lines_are_counted_when_nothing_remains(tmp_path, capsys):
    path = log(tmp_path, [row if number % 8 == 0 else {"customer": "x"} for number, row in enumerate(shop())])
    assert run(path, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "31 of its 36 lines are malformed" in err.splitlines()[-1]
    assert any(line.split()[:3] == ["-", "malformed", "31"] for line in err.splitlines())


def test_a_refused_conversion_prints_its_table(tmp_path, capsys):
    assert run(log(tmp_path, shop()), tmp_path / "out", "--k", 50) == 2
    out, err = capsys.readouterr()
    found = {line.strip("- ").rsplit(None, 1)[0]: line for line in err.splitlines()}
    assert out == "" and any("below the k-core" in name for name in found) and "lower --k" in err.splitlines()[-1]


LATIN = [{**row, "product": row["product"].replace("Toy", "Café")} for row in shop()]


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.csv.zst"])
def test_another_encoding_is_named_and_read(tmp_path, name, capsys):
    path = log(tmp_path, LATIN, "latin-1", name)
    assert run(path, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert f"line 2 of {name} has the byte 0xE9, which is not UTF-8" in err and "--encoding latin-1" in err
    report = convert(path, "s", tmp_path / "out", columns=COLUMNS, encoding="latin-1")
    check_set(report, tmp_path / "out")
    assert report["inputs"] == {name: sha256(path)} and not report.get("not_utf8")
    assert lines(tmp_path / "out" / "s" / "s.item")[1].endswith("Café 0")


def test_another_encoding_in_a_file_of_titles(tmp_path, capsys):
    """Without the note, reviews would be lost as `item without usable title` only."""
    titles = tmp_path / "titles.csv"
    titles.write_bytes(
        ("sku,product\n" + "".join(f"B{item},{'Café' if item % 2 else 'Toy'} {item}\n" for item in range(6))).encode("latin-1")
    )
    words = [
        "--reviews",
        str(log(tmp_path, shop())),
        "--columns",
        "user=customer,item=sku,time=bought",
        "--meta",
        str(titles),
        "--meta-columns",
        "item=sku,title=product",
        "--name",
        "s",
        "--out",
        str(tmp_path / "out"),
        "--k",
        "1",
    ]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "warning: line 3 of titles.csv has the byte 0xE9, which is not UTF-8" in err and "Traceback" not in err
    assert main([*words, "--encoding", "cp1252"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert len(lines(tmp_path / "out" / "s" / "s.item")) == 7


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_character_on_the_edge_of_a_block_is_no_wrong_byte(tmp_path, cut):
    from dataset_scripts.check import Check
    from dataset_scripts.sources import recognise

    path = tmp_path / "log.csv"
    path.write_bytes(b"a,b\n" + b"x" * (Check.STEP - 4 - cut) + "🎲".encode() + b",y\n" + b"\xe9,z\n")
    assert Check(recognise(path)).finish().not_utf8 == (3, 0xE9)


def test_an_encoding_that_does_not_fit_or_does_not_exist(tmp_path):
    path = log(tmp_path, LATIN, "latin-1")
    with pytest.raises(DataError, match=r"log.csv is not utf-16 text .*name its encoding with --encoding"):
        convert(path, "s", tmp_path / "out", columns=COLUMNS, encoding="utf-16")
    for name in ("utf-99", "hex", ""):
        with pytest.raises(ConfigError, match="encoding is .*, which Python does not know"):
            convert(path, "s", tmp_path / "out", columns=COLUMNS, encoding=name)
    assert codecs.lookup("utf-16").name == "utf-16" and [each.name for each in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--columns", "user=a,user=b,item=c,time=d"], "found 'user' 2 times"),
        (["--ratios", "1,0,0"], "expected three shares above 0"),
    ],
)
def test_options_that_contradict_themselves(tmp_path, words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--reviews", str(log(tmp_path, shop())), "--name", "s", "--out", str(tmp_path / "out"), *words])
    assert end.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_ctrl_c_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "convert", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(log(tmp_path, shop()), tmp_path / "out") == 130
    assert capsys.readouterr().err == "\nerror: interrupted; nothing was written\n"


def test_names_of_files_cannot_command_the_terminal(tmp_path, capsys):
    path = log(tmp_path, shop(), name="log\x1b[31m.csv")
    assert run(path, tmp_path / "out") == 0
    assert run(path, tmp_path / "out", "--k", 99) == 2
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and r"log\x1b[31m.csv" in out


@pytest.mark.skipif(os.name == "nt", reason="folders are not locked there")
def test_what_killed_conversions_left_is_removed(tmp_path):
    out = tmp_path / "out"
    left = [out / f".s.{'0' * 12}.tmp", out / f".s.{'1' * 12}.tmp.old"]
    others = [out / f".other.{'0' * 12}.tmp", out / ".s.notes.tmp", out / f".s.{'0' * 12}.txt"]
    for folder in (*left, *others):
        folder.mkdir(parents=True)
        (folder / "x").write_text("x")
    convert(log(tmp_path, shop()), "s", out, columns=COLUMNS)
    assert not any(folder.exists() for folder in left) and all((folder / "x").is_file() for folder in others)


@pytest.mark.skipif(os.name == "nt", reason="folders are not locked there")
def test_a_conversion_that_is_still_running_is_left_alone(tmp_path):
    from recbole_flr.data.atomic import staged

    with staged(tmp_path / "out" / "s") as running:
        (running / "x").write_text("x")
        convert(log(tmp_path, shop()), "s", tmp_path / "out", columns=COLUMNS)
        assert (running / "x").is_file()
    assert json.loads((Path(tmp_path) / "out" / "s" / "s.report.json").read_text())["kept"] == 36
