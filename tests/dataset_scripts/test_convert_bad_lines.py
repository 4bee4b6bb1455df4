"""Broken lines and bad values: either the right output and a count, or one clear error; never half an output."""

import pytest
from helpers_convert import (
    COLUMNS, CSV_GOOD, GOOD, START, check_set, counted, json_lines, output, refused, reviews_of, shop, simple, tree, write,
)  # fmt: skip

from dataset_scripts.convert import convert

# ---- broken lines ------------------------------------------------------------------------------------------------------

OK_REVIEW = {"reviewerID": "R0", "asin": "B0", "overall": 5.0, "unixReviewTime": START}
BROKEN_LINES = [
    b"{'reviewerID': 'R0'}", b'{"reviewerID": "R0"', b"[1, 2]", b"7", b'"text"', b"null", b"{}", b"[" * 100_000,
    b'{"a": ' * 5000, b"\xff\xfe", b"\0", b"\0\0\0",
    b"\x1c", "\u00a0".encode(), b"\xef\xbb\xbf", GOOD.split(b"\n")[0][:40], GOOD.split(b"\n")[0] * 2,
    GOOD.split(b"\n")[0] + b"x",
    GOOD.split(b"\n")[0].replace(b"R0", b"R\xff"), GOOD.split(b"\n")[0].replace(b"R0", b"R\t0"), b"9" * 5000,
    b'{"reviewerID": "R0", "asin": ' + b"9" * 99 + b"}",
    *(json_lines([{**OK_REVIEW, key: value}])[:-1] for key, values in {
        "reviewerID": [None, "", [], {}, ["R0"], {"a": 1}, "half \ud800", "\udc00"],
        "asin": [None, "", ["B0"], {"a": []}, "\ud83d"],
        "overall": ["good", "", None, float("nan"), float("inf"), "inf", True, [5], {}, "5,0", "0x5"],
        "unixReviewTime": [None, "", True, "today", "now", "2017-13-01", "2017-02-30", "12:00", float("inf"), "nan", [START],
                           {"a": 1}, "1,5"],
    }.items() for value in values),
    *(json_lines([{key: value for key, value in OK_REVIEW.items() if key != missing}])[:-1] for missing in OK_REVIEW),
]  # fmt: skip


def between(good, lines):
    """Puts up to five lines between good ones: one at the beginning, two side by side, two near and at the end.

    Returns all lines, and the numbers (from 1) of those that were put in.
    """
    rows, places = list(good), [0, 7, 8, len(good) - 2, len(good)]
    for added, (place, line) in enumerate(zip(places, lines)):
        rows.insert(place + added, line)
    return rows, [place + added + 1 for added, place in enumerate(places[: len(lines)])]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_broken_lines_of_json(tmp_path, suffix):
    """Five at a time, because the report gives five numbers; then all together."""
    _, meta = simple(tmp_path)
    good = GOOD.removesuffix(b"\n").split(b"\n")
    reviews = tmp_path / f"r.json{suffix}"
    for begin in range(0, len(BROKEN_LINES), 5):
        rows, numbers = between(good, BROKEN_LINES[begin : begin + 5])
        report = counted(tmp_path, write(reviews, b"\n".join(rows)), meta=meta)
        found = report["malformed_lines"], report["malformed"], report["kept"]
        assert found == (numbers, len(numbers), 36), BROKEN_LINES[begin : begin + 5]
    write(reviews, b"\n".join([*good[:3], b"", *BROKEN_LINES, *good[3:]]))
    report = counted(tmp_path, reviews, meta=meta)
    assert (report["malformed"], report["malformed_lines"], report["kept"]) == (len(BROKEN_LINES), [5, 6, 7, 8, 9], 36)


def test_lines_that_are_read_all_the_same(tmp_path):
    """Lines that Python's json accepts but DuckDB does not; white space; keys in any order; surplus keys."""
    first = GOOD.split(b"\n")[0]
    fine = [
        first[:-1] + b', "z": NaN, "y": -Infinity}', first[:-1] + b', "z": "\\ud800"}', b"  " + first + b" \t\r",
        first[:-1] + b', "z": "\\u0000"}',
        json_lines([dict(reversed(OK_REVIEW.items()))])[:-1], first[:-1] + b', "z": ' + b"[" * 500 + b"]" * 500 + b"}",
        first.replace(b'"R0"', b'"\\u00520"'),
        json_lines([{**OK_REVIEW, "overall": " 5 ", "unixReviewTime": f"{START}"}])[:-1],
        first[:-1] + b', "z": {"reviewerID": "other"}}',
    ]  # fmt: skip
    _, meta = simple(tmp_path)
    reviews = write(tmp_path / "r.json", GOOD + b"\n".join(fine))
    report = counted(tmp_path, reviews, meta=meta)
    assert (report["malformed"], report["kept"], report["users"]) == (0, 36 + len(fine), 6)


def test_many_lines_that_need_a_second_look(tmp_path):
    """More lines than one batch holds."""
    rows = [{**row, "z": "half \ud83d"} for row in reviews_of(6, 6) * 700]
    reviews, meta = write(tmp_path / "r.json", rows), simple(tmp_path)[1]
    broken = [7, 20_000]
    lines = json_lines(rows).split(b"\n")
    for place in broken:
        lines[place] = b"{"
    reviews.write_bytes(b"\n".join(lines))
    report = counted(tmp_path, reviews, meta=meta)
    assert (report["lines"], report["malformed_lines"], report["users"]) == (25_200, [8, 20_001], 6)


CSV_LINES = {  # line -> whether it is malformed
    "x": True, "a,b,c": True, f"R0,B0,{START},Toy,more": True, ",,,": True, f",B0,{START},Toy": True,
             f"R0,,{START},Toy": True, "R0,B0,,Toy": True,
    "R0,B0,soon,Toy": True, "\0": True, '""': True, f'R0,B0,{START},"x" y,z': True, '"': True,
    f"R0,B0,{START},": False, f"R0,B0,{START},Toy,": False, f'"R0","B0","{START}","a ""b"" c"': False,
             f'R0,B0,{START},a "b" c': False,
    f"R0,B0,{START},nul\0": False, f"R\0,B0,{START},Toy": False, f"\x01,B0,{START},Toy": False,
             f'R0,B0,{START},"two\nlines"': False,
    f'R0,B0,{START},"lone\rCR"': False, f'R0,B0,{START},"half" quoted': False, f"R0,B0, {START} ,Toy": False,
             f"{'R' * 200_000},B0,{START},Toy": False,
}  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_broken_lines_of_csv(tmp_path, end):
    """Five malformed lines at a time, because the report gives five numbers. Valid lines one at a time."""
    lines = {line: bad for line, bad in CSV_LINES.items() if line != '"' and (end == "\n" or "\n" not in line)}
    broken = [line for line, bad in lines.items() if bad]
    groups = [(broken[begin : begin + 5], True) for begin in range(0, len(broken), 5)]
    groups += [([line], False) for line, bad in lines.items() if not bad]
    for group, bad in groups:
        rows, numbers = between(CSV_GOOD[1:], group)
        report = counted(tmp_path, write(tmp_path / "log.csv", end.join([CSV_GOOD[0], *rows]).encode()), columns=COLUMNS)
        assert report["malformed_lines"] == [number + 1 for number in numbers] * bad, group
        assert (report["lines"], report["kept"]) == (36 + len(group), 36 + len(group) * (not bad))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bytes_of_csv_that_are_not_utf8(tmp_path, suffix):
    lines = [line.encode() for line in CSV_GOOD]
    lines[5] = lines[5].replace(b"R", b"\xe9")
    lines[9] = lines[9].replace(b"B", b"\xc3")
    log = write(tmp_path / f"log.csv{suffix}", b"\n".join(lines))
    report = counted(tmp_path, log, columns=COLUMNS)
    assert (report["malformed_lines"], report["lines"]) == ([6, 10], 36)


def test_quotes_that_do_not_pair_up(tmp_path):
    """An open quote takes the following lines into its field. No record is lost."""
    begin, end = "\n".join(CSV_GOOD[:10]), "\n".join(CSV_GOOD[10:])
    unclosed = f'R0,B0,{START},"Toy'
    report = counted(tmp_path, write(tmp_path / "log.csv", f"{begin}\n{unclosed}\n{end}\n".encode()), columns=COLUMNS)
    assert (report["lines"], report["kept"], report["malformed"]) == (10, 10, 0)  # the last title goes on to the end of the file
    report = counted(
        tmp_path, write(tmp_path / "log.csv", f"{begin}\n{unclosed}\n{end}\n".encode()), columns=COLUMNS, quote=""
    )
    assert (report["lines"], report["kept"]) == (37, 37)
    twice = f"{begin}\n{unclosed}\n{CSV_GOOD[10]}\n{unclosed}\n" + "\n".join(CSV_GOOD[11:])
    report = counted(tmp_path, write(tmp_path / "log.csv", twice.encode()), columns=COLUMNS)
    assert (report["lines"], report["kept"]) == (9 + 1 + 26, 36)
    inches = f'R0,B0,{START},Toy 5"'
    report = counted(tmp_path, write(tmp_path / "log.csv", f"{begin}\n{inches}\n{end}\n".encode()), columns=COLUMNS)
    assert (report["lines"], report["kept"]) == (37, 37)
    big = "\n".join(f"R{n % 6},B{n % 5},{START + n},Toy" for n in range(850_000))
    log = write(tmp_path / "log.csv", f"{begin}\n{unclosed}\n{big}\n".encode())
    assert log.stat().st_size > 17e6
    refused(
        tmp_path, "log.csv: field larger than field limit .* is a quote not closed.* say --quote ''", log, columns=COLUMNS
    )


def test_lines_that_quotes_join_are_told(tmp_path, caplog):
    """The report counts records. A warning says that there are fewer records than lines."""
    lines = [*CSV_GOOD[:10], f'R0,B0,{START},"Toy', *CSV_GOOD[10:15], f'R0,B0,{START},"Toy', *CSV_GOOD[15:]]
    report = counted(tmp_path, write(tmp_path / "log.csv", "\n".join(lines).encode()), columns=COLUMNS)
    assert report["lines"] == len(lines) - 1 - 6
    assert "quotes join 7 lines into 1 records, the first from line 11 on; is a quote not closed?" in caplog.text
    caplog.clear()
    counted(tmp_path, write(tmp_path / "log.csv", "\n".join(lines).encode()), columns=COLUMNS, quote="")
    text = "\r\n".join(CSV_GOOD[:5]) + "\n" + "\n".join(CSV_GOOD[5:])
    counted(tmp_path, write(tmp_path / "log.csv", text.encode()), columns=COLUMNS)
    assert "quotes join" not in caplog.text


def test_line_ends_of_several_kinds(tmp_path):
    """DuckDB's reader stops at them. Line numbers are still those of the file."""
    for ends in (["\n", "\r\n"], ["\r\n", "\n"], ["\n", "\r"], ["\r\n", "\n", "\r"]):
        for quote in ('"', ""):
            lines = [*CSV_GOOD[:4], "\t", "short,line", *CSV_GOOD[4:8], "  ", f"R0,B0,x,{quote}Toy{quote}", *CSV_GOOD[8:]]
            text = "".join(line + ends[number % len(ends)] for number, line in enumerate(lines))
            report = counted(tmp_path, write(tmp_path / "log.csv", text.encode()), columns=COLUMNS, quote=quote)
            assert (report["lines"], report["malformed_lines"]) == (38, [6, 12])


@pytest.mark.parametrize("megabytes, place", [(12, 0), (3, 18), (12, 36)])
def test_a_line_of_many_megabytes(tmp_path, megabytes, place):
    text = b"a" * (megabytes << 20)
    _, meta = simple(tmp_path)
    good = GOOD.removesuffix(b"\n").split(b"\n")
    for line, kept in (
        (b"\xff" * len(text), 36),
        (b'{"x": "' + text + b'"}', 36),
        (good[0][:-1] + b', "x": "' + text + b'"}', 37),
    ):
        report = counted(tmp_path, write(tmp_path / "r.json", b"\n".join([*good[:place], line, *good[place:]])), meta=meta)
        assert (report["kept"], report["malformed_lines"]) == (kept, [place + 1] * (kept == 36))
    rows = [line.encode() for line in CSV_GOOD]
    for line, kept in (
        (text, 36),
        (f"R0,B0,{START},".encode() + text, 37),
        (f'R0,B0,{START},"'.encode() + text + b'\n"', 37),
    ):
        report = counted(
            tmp_path,
            write(tmp_path / "log.csv", b"\n".join([*rows[: place + 1], line, *rows[place + 1 :]])),
            columns=COLUMNS,
        )
        assert (report["kept"], report["malformed_lines"]) == (kept, [place + 2] * (kept == 36))


def test_a_line_that_is_too_long(tmp_path):
    reviews, meta = simple(tmp_path)
    reviews.write_bytes(GOOD + b'{"x": "' + b"a" * (40 << 20) + b'"}\n' + GOOD)
    refused(tmp_path, "reviews.json has a line of more than 16 MB; expected one JSON object a line", reviews, meta=meta)
    log = write(
        tmp_path / "log.csv", "\n".join([*CSV_GOOD[:9], "R0,B0," + "a" * (40 << 20) + ",Toy", *CSV_GOOD[9:], "x"]).encode()
    )
    report = counted(tmp_path, log, columns=COLUMNS)
    assert (report["malformed_lines"], report["kept"]) == ([10, 39], 36)


def test_an_id_that_is_too_long(tmp_path):
    """In memory each id takes as many bytes as the longest. One long id is fine, but not gigabytes of them."""
    rows = [{**row, "customer": row["customer"] + "x" * (1 << 20) * (row["customer"] == "R0")} for row in shop(2100, 2)]
    assert counted(tmp_path, write(tmp_path / "log.json", rows[:60]), columns=COLUMNS)["kept"] == 60
    message = "an id has 1,048,578 bytes, too many beside 2,100 others; it begins with b'R0xxx"
    refused(tmp_path, message, write(tmp_path / "log.json", rows), columns=COLUMNS)


# ---- values ------------------------------------------------------------------------------------------------------------


def test_ids_that_recbole_cannot_read(tmp_path):
    from urllib.parse import unquote

    ids = ["two words", "tab\tid", "new\nline", "cr\rid", 'quo"te', "\u3000", "\x00", "\x7f", "%41", "\u2028"]
    words = ["[PAD]", "NA", "nan", "null", "None", "#N/A", "-1.#IND", "<NA>"]
    rows = [{**OK_REVIEW, "reviewerID": text, "asin": item} for text in [*ids, *words] for item in ("B0", "B1")]
    rows += [{**OK_REVIEW, "reviewerID": user, "asin": text} for text in [*ids, *words] for user in ("R0", "R1")]
    reviews = write(tmp_path / "r.json", rows)
    meta = write(tmp_path / "m.json", [{"asin": text, "title": f"Toy {text}"} for text in ["B0", "B1", *ids, *words]])
    before = tree(tmp_path)
    report = convert(reviews, "s", tmp_path / "out", meta=meta, k=1, min_items=0)
    check_set(report, tmp_path / "out")
    assert (report["bad_ids"], report["malformed"], report["escaped_ids"], report["kept"]) == (32, 0, 20, 40)
    found = output(tmp_path / "out")
    assert [unquote(line.split("\t")[0]) for line in found["inter"][1:21:2]] == ids
    assert [unquote(line.split("\t")[0]) for line in found["item"][1:]] == ["B0", "B1", *ids]
    assert {path: content for path, content in tree(tmp_path).items() if not path.startswith("out")} == before


def test_a_core_that_leaves_nothing(tmp_path):
    reviews, meta = simple(tmp_path)
    message = "nothing remains of 36 reviews from 2017-10-01 to 2018-11-01 in the 7-core; lower --k or widen the window"
    refused(tmp_path, message, reviews, meta=meta, k=7)
    refused(tmp_path, "nothing remains of 0 reviews from 2018-10-01", reviews, meta=meta, start="2018-10-01")
    refused(tmp_path, "6 items remain even from 1996-07-01, fewer than the 7 wanted", reviews, meta=meta, min_items=7)
    refused(
        tmp_path,
        "nothing remains of 36 reviews from - to - in the 7-core",
        write(tmp_path / "log", shop()),
        columns=COLUMNS,
        k=7,
    )
    reviews, meta = simple(tmp_path, n_users=2, n_items=2)
    refused(tmp_path, "only 2 samples remain, too few for a valid part", reviews, meta=meta)
    reviews, meta = simple(tmp_path, n_users=2, n_items=1)
    refused(tmp_path, "only 0 samples remain, too few for a train part", reviews, meta=meta)
