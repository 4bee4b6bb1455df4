"""Downloads of the published data sets: names, addresses, the command, and on to RecBole. No test needs a network."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from helpers_data import make_config
from helpers_server import BODY

from dataset_scripts import amazon
from dataset_scripts import download as download_module
from dataset_scripts.convert import KINDS
from dataset_scripts.download import CATEGORIES, NAMES, addresses, download, main, prepare
from recbole_flr.data.loading import expected_files, load_dataset, prepare_files
from recbole_flr.errors import ConfigError, DataError

# Names and addresses


def test_the_published_addresses():
    base = "https://mcauleylab.ucsd.edu/public_datasets/data"
    assert addresses("toys") == (f"{base}/amazon_v2/categoryFilesSmall/Toys_and_Games_5.json.gz",
                                 f"{base}/amazon_v2/metaFiles2/meta_Toys_and_Games.json.gz")
    assert addresses("cds", full=True)[0] == f"{base}/amazon_v2/categoryFiles/CDs_and_Vinyl.json.gz"
    for full in (False, True):
        assert addresses("games-2023", full=full) == (
            f"{base}/amazon_2023/raw/review_categories/Video_Games.jsonl.gz",
            f"{base}/amazon_2023/raw/meta_categories/meta_Video_Games.jsonl.gz")
    mirrored = "http://host/data/amazon_v2/metaFiles2/meta_Musical_Instruments.json.gz"
    assert addresses("instruments", mirror="http://host/data/")[1] == mirrored
    assert list(NAMES) == [*CATEGORIES, *(f"{name}-2023" for name in CATEGORIES)]


@pytest.mark.parametrize("name, nearest", [
    ("toy", "toys"), ("game-2023", "games-2023"), ("CDs", "cds"), ("../toys", "toys"),
])
def test_an_unknown_name(name, nearest, tmp_path):
    for function in (download, prepare):
        with pytest.raises(ConfigError, match=re.escape(repr(name))) as caught:
            function(name, tmp_path)
        assert f"the nearest is {nearest!r}" in str(caught.value) and ", ".join(NAMES) in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("words, fetched", [
    (["toys"], [("toys", "categoryFilesSmall/Toys_and_Games_5.json.gz"),
                ("toys", "metaFiles2/meta_Toys_and_Games.json.gz")]),
    (["cds", "--full"], [("cds", "categoryFiles/CDs_and_Vinyl.json.gz"), ("cds", "metaFiles2/meta_CDs_and_Vinyl.json.gz")]),
    (["games-2023"], [("games-2023", "review_categories/Video_Games.jsonl.gz"),
                      ("games-2023", "meta_categories/meta_Video_Games.jsonl.gz")]),
    (["games", "movies-2023", "--release", "2023"], [
        ("games-2023", "review_categories/Video_Games.jsonl.gz"),
        ("games-2023", "meta_categories/meta_Video_Games.jsonl.gz"),
        ("movies-2023", "review_categories/Movies_and_TV.jsonl.gz"),
        ("movies-2023", "meta_categories/meta_Movies_and_TV.jsonl.gz")]),
], ids=["2018", "full", "2023", "--release"])
def test_the_command_fetches_what_was_named(words, fetched, server, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path), "--mirror", server.url]) == 0
    paths = [tmp_path / name / "raw" / address.split("/")[1] for name, address in fetched]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in paths]
    assert all(path.read_bytes() == BODY for path in paths)
    asked = [request[0].split("/", 2)[2].removeprefix("raw/") for request in server.requests]
    assert asked == [address for _, address in fetched]


@pytest.mark.parametrize("words, said", [
    (["toys", "toyz"], "'toyz' cannot be downloaded"), (["toys-2023", "--release", "2018"], "belongs to the release 2023"),
    (["toys-2018"], "the nearest is 'toys"), (["toys", "--mirror", "file:///data"], "file:///data/amazon_v2"),
])
def test_a_mistake_gets_one_line(words, said, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "data")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not (tmp_path / "data").exists()


# On to RecBole


def raw(release):
    """Reviews and metadata of six users and six items, in the schema of a release, as gzip."""
    if release == "2018":
        user, item, rating, stamp, unit = "reviewerID", "asin", "overall", "unixReviewTime", 1
    else:
        user, item, rating, stamp, unit = "user_id", "parent_asin", "rating", "timestamp", 1000
    reviews = [{user: f"u{u}", "asin": f"a{i}", item: f"a{i}", rating: 5.0, stamp: (1510000000 + 86400 * i + u) * unit}
               for u in range(6) for i in range(6)]
    meta = [{item: f"a{i}", "title": f"Thing {i}"} for i in range(6)]
    return [gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0) for rows in (reviews, meta)]


def serve(server, name):
    for url, body in zip(addresses(name, mirror=server.url), raw(NAMES[name][0])):
        server.files[url.removeprefix(server.url)] = body


@pytest.fixture
def converter(monkeypatch):
    """Replaces the converter: remembers the calls and writes empty files."""
    calls = []

    def convert(reviews, name, out="dataset", **options):
        calls.append((Path(reviews), name, Path(out), options))
        for kind in KINDS:
            (Path(out) / name / f"{name}.{kind}").touch()

    monkeypatch.setattr("dataset_scripts.convert.convert", convert)
    return calls


@pytest.mark.parametrize("name", ["toys", "movies", "toys-2023", "movies-2023"])
def test_prepare_downloads_and_converts_once(name, server, tmp_path, converter):
    folder = tmp_path / name
    assert prepare(name, tmp_path, server.url, show_progress=False) == folder
    files = [folder / "raw" / url.rsplit("/", 1)[1] for url in addresses(name)]
    (reviews, called, out, options), = converter
    assert (reviews, called, out) == (files[0], name, tmp_path) and options.pop("meta") == files[1]
    assert options.pop("show_progress") is False
    assert options == ({"min_items": 0} if name == "movies" else {})
    assert len(server.requests) == 2
    prepare(name, tmp_path, server.url)
    assert len(server.requests) == 2 and len(converter) == 1
    (folder / f"{name}.item").unlink()  # the raw files are there: they are converted again, but not downloaded again
    prepare(name, tmp_path, server.url)
    assert len(server.requests) == 2 and len(converter) == 2


def test_loading_without_the_option_fetches_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "BASE", server.url)
    with pytest.raises(DataError, match=r"1\. download and convert Amazon's Toys_and_Games of 2023:  --download=true"):
        prepare_files(make_config(tmp_path, name="toys-2023"))
    assert server.requests == [] and os.listdir(tmp_path) == []


def test_loading_with_the_option(server, tmp_path, monkeypatch, converter):
    monkeypatch.setattr(download_module, "BASE", server.url)
    config = make_config(tmp_path, name="toys", download="true", show_progress=False)
    prepare_files(config)
    assert all(path.is_file() for path in expected_files(config)) and len(server.requests) == 2
    prepare_files(config)
    assert len(server.requests) == 2 and len(converter) == 1


def test_loading_with_the_option_what_has_no_address(tmp_path):
    with pytest.raises(ConfigError, match="'mini' cannot be downloaded; expected one of toys, cds, games, .*toys-2023"):
        prepare_files(make_config(tmp_path, name="mini", download=True))


@pytest.mark.parametrize("name", ["movies", "toys-2023"])
def test_from_the_server_to_a_data_set(name, server, tmp_path, monkeypatch):
    """`--dataset=NAME --download=true` on an empty folder, with the real converter. The split is that of the files."""
    monkeypatch.setattr(download_module, "BASE", server.url)
    monkeypatch.setitem(amazon.PUBLISHED, "min_items", 0 if name == "toys-2023" else 5000)
    serve(server, name)
    dataset = load_dataset(make_config(tmp_path, name=name, download="true", show_progress=False))
    assert dataset.item_num == 7 and dataset.file_size_list == [24, 3, 3]
    assert sorted(os.listdir(tmp_path / name / "raw")) == [url.rsplit("/", 1)[1] for url in addresses(name)]
    assert {f"{name}.{kind}" for kind in KINDS} < set(os.listdir(tmp_path / name))


def test_the_command_converts(server, tmp_path, capsys):
    serve(server, "movies")
    assert main(["movies", "--convert", "--out", str(tmp_path), "--mirror", server.url]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "movies")
    assert {f"movies.{kind}" for kind in KINDS} < set(os.listdir(tmp_path / "movies"))


def test_what_the_converter_refuses_is_one_line_and_the_download_stays(server, tmp_path, capsys):
    serve(server, "toys")
    for _ in range(2):
        assert main(["toys", "--convert", "--out", str(tmp_path), "--mirror", server.url]) == 2
        err = capsys.readouterr().err
        assert err.splitlines()[-1].startswith("error: 6 items remain") and "Traceback" not in err
    assert len(server.requests) == 2 and os.listdir(tmp_path / "toys") == ["raw"]
