"""The data set toys_demo: its files, its titles, and the choices of its users."""

import gzip
import json
import math
import os
from collections import Counter, defaultdict

import pytest

from dataset_scripts import toys_demo
from dataset_scripts.convert import convert
from recbole_flr.data.atomic import header, read_columns, unescape


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys_demo.prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def truth(folder):
    return json.loads((folder / "raw" / "facets.json").read_text(encoding="utf-8"))


def part(folder, kind):
    """The samples of a part: list of (user, history, item)."""
    columns = read_columns(folder / f"toys_demo.{kind}.inter", ["user_id", "item_id_list", "item_id"])
    return [(user, history.split(" "), item) for user, history, item in zip(*columns.values())]


def titles(folder):
    columns = read_columns(folder / "toys_demo.item", ["item_id", "title"])
    return dict(zip(columns["item_id"], map(unescape, columns["title"])))


def raw(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[:-1]]


def test_size_and_files(folder, truth):
    assert sorted(tree(folder)) == [
        "raw/facets.json", "raw/meta.json.gz", "raw/reviews.json.gz",
        "toys_demo.inter", "toys_demo.item", "toys_demo.report.json",
        "toys_demo.test.inter", "toys_demo.train.inter", "toys_demo.valid.inter",
        "toys_demo.yaml",
    ]  # fmt: skip
    assert os.listdir(folder.parent) == ["toys_demo"]  # no temporary folder is left
    assert header(folder / "toys_demo.item") == {
        "item_id": "token", "title": "token", "brand": "token", "categories": "token_seq", "price": "float",
    }  # fmt: skip
    sizes = {kind: len(part(folder, kind)) for kind in ("train", "valid", "test")}
    assert 6000 <= sizes["train"] <= 8000
    assert sizes["valid"] > 700 and sizes["test"] > 700
    # The 5-core keeps nearly everything.
    assert len(titles(folder)) >= 0.98 * len(truth["items"])
    users = read_columns(folder / "toys_demo.inter", ["user_id"])["user_id"]
    assert len(set(users)) >= 0.98 * len(truth["users"])
    assert all(5 <= count <= 14 for count in Counter(users).values())


def test_raw_schema(folder):
    reviews, meta = raw(folder / "raw" / "reviews.json.gz"), raw(folder / "raw" / "meta.json.gz")
    assert {tuple(sorted(row)) for row in reviews} == {
        ("asin", "overall", "reviewText", "reviewerID", "summary", "unixReviewTime", "verified")
    }
    assert {"asin", "title", "brand", "category", "price"} == set().union(*meta)
    assert all(row["unixReviewTime"] % 86400 == 0 and 1 <= row["overall"] <= 5 for row in reviews)
    assert len({row["overall"] for row in reviews}) > 2


def test_titles_carry_the_facets(folder, truth):
    for asin, title in titles(folder).items():
        item = truth["items"][asin]
        assert item["theme"] in title
        assert toys_demo.CATEGORIES[item["category"]][0] in title
    naming_age = sum(truth["items"][asin]["age"] in title for asin, title in titles(folder).items())
    assert naming_age >= 0.97 * len(titles(folder))  # all but those that were cut to a prefix of another title


def test_titles_hold_what_programs_trip_over(folder):
    found = list(titles(folder).values())
    assert any('"' in title[1:-1] for title in found)
    assert any("🚒" in title for title in found) and any("秘密基地" in title for title in found)
    assert any("&" in title for title in found) and not any("&quot;" in title or "&amp;" in title for title in found)
    assert sum(any(other != title and other.startswith(title) for other in found) for title in found) >= 3
    brands = read_columns(folder / "toys_demo.item", ["brand"])["brand"]
    bearers = defaultdict(list)
    for title, brand in zip(found, brands):
        bearers[title].append(brand)
    shared = [brands for brands in bearers.values() if len(brands) > 1]
    assert len(shared) >= 4
    assert all(len(set(brands)) == len(brands) for brands in shared)  # title and brand together tell items apart


def test_items_without_a_usable_title_are_reviewed_and_dropped(folder):
    lost = {row["asin"] for row in raw(folder / "raw" / "reviews.json.gz")} - set(titles(folder))
    assert lost == {"L000000000", "L000000001", "L000000002"}


def test_users_choose_by_their_facets(folder, truth):
    """Users choose what they like: most choices match both theme and category, few match neither."""
    matches = Counter()
    for user, _, item in part(folder, "train"):
        likes, has = truth["users"][user], truth["items"][item]
        matches[has["theme"] in likes["themes"], has["category"] in likes["categories"]] += 1
    total = sum(matches.values())
    assert matches[True, True] > 0.5 * total
    assert 0.05 * total < matches[False, False] < 0.3 * total


def ndcg_at_10(rows, rank):
    """Mean NDCG@10 of full rankings; `rank(user, history)` gives the ten best items, best first."""
    gains = []
    for user, history, item in rows:
        ranking = rank(user, history)
        assert len(ranking) == len(set(ranking)) == 10
        gains.append(1 / math.log2(ranking.index(item) + 2) if item in ranking else 0.0)
    return sum(gains) / len(gains)


def test_order_and_facets_tell_more_than_popularity(folder, truth):
    train, test = part(folder, "train"), part(folder, "test")
    popularity = Counter(item for _, _, item in train)
    popular = [item for item, _ in popularity.most_common(10)]
    after = defaultdict(Counter)
    for _, history, item in train:
        after[history[-1]][item] += 1

    def by_transition(user, history):
        likely = [item for item, _ in after[history[-1]].most_common(10)]
        return (likely + [item for item in popular if item not in likely])[:10]

    def by_facets(user, history):
        likes, seen = truth["users"][user], set(history)
        score = {asin: toys_demo._fit(likes, item) for asin, item in truth["items"].items() if asin not in seen}
        return sorted(score, key=score.get, reverse=True)[:10]

    base = ndcg_at_10(test, lambda user, history: popular)
    assert 0 < base < 0.05
    assert ndcg_at_10(test, by_transition) > 3 * base
    assert ndcg_at_10(test, by_facets) > 3 * base


def test_the_same_seed_gives_the_same_bytes(tmp_path, folder):
    reviews, meta = toys_demo.generate(tmp_path / "a")
    assert (reviews, meta) == (tmp_path / "a" / "reviews.json.gz", tmp_path / "a" / "meta.json.gz")
    assert tree(tmp_path / "a") == tree(folder / "raw")
    assert json.loads((tmp_path / "a" / "facets.json").read_text(encoding="utf-8")) == toys_demo.facets()
    toys_demo.generate(tmp_path / "b", seed=1)
    other = tree(tmp_path / "b")
    assert all(other[name] != content for name, content in tree(tmp_path / "a").items())


def test_the_conversion_is_that_of_the_converter(tmp_path, folder):
    raw_files = folder / "raw" / "reviews.json.gz", folder / "raw" / "meta.json.gz"
    report = convert(raw_files[0], "toys_demo", tmp_path, meta=raw_files[1], min_items=0)
    converted = {name: content for name, content in tree(folder).items() if not name.startswith("raw")}
    assert tree(tmp_path / "toys_demo") == converted
    assert (report["start"], report["end"], report["outside_window"]) == ("2017-10-01", "2018-11-01", 0)
    assert report["without_title"] > 0


def test_prepare_does_nothing_twice(tmp_path, monkeypatch):
    folder = toys_demo.prepare(tmp_path)
    before = tree(tmp_path)
    monkeypatch.setattr(toys_demo, "convert", lambda *a, **kw: pytest.fail("converted again"))
    assert toys_demo.prepare(tmp_path) == folder == tmp_path / "toys_demo"
    assert tree(tmp_path) == before


def test_prepare_completes_a_broken_set(tmp_path, folder):
    broken = toys_demo.prepare(tmp_path)
    (broken / "toys_demo.test.inter").unlink()
    (broken / "raw" / "meta.json.gz").unlink()
    (broken / "notes.txt").write_text("mine")
    toys_demo.prepare(tmp_path)
    assert tree(broken) == {**tree(folder), "notes.txt": b"mine"}


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(toys_demo, "convert", fails)
    with pytest.raises(KeyboardInterrupt):
        toys_demo.prepare(tmp_path / "dataset")
    assert os.listdir(tmp_path) == []


def test_command_line(tmp_path, capsys, folder):
    assert toys_demo.main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "toys_demo")
    assert tree(tmp_path / "toys_demo") == tree(folder)
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "toys_demo").write_text("in the way")
    assert toys_demo.main(["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
