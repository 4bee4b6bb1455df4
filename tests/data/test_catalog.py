"""Titles from the file to the model's texts: hostile titles, repeated titles, missing titles and columns."""

import itertools
import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_data import make_config, write, write_set
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.data.atomic import escape
from recbole_flr.data.catalog import Catalog, training_popularity
from recbole_flr.data.loading import find_field, load_dataset, read_titles, split, title_groups
from recbole_flr.errors import DataError

NASTY = [
    "Plain", '"an open quote', 'quotes "in" the middle', '"quoted"', "''", "None", "NA", "nan", "NULL", "null",
    "<NA>", "1.0",
    "double  blanks", " blank in front", "blank behind ", "🚒👨‍👩‍👧", "秘密基地",
    "line\u2028ends\x85of\x0ball\x1ckinds", "\x00", "a,b;c:d|e", "#hash",
    "<|Thought|>", "<|endoftext|>", "[PAD]", "back\\slash", "C:\\new\\table", "ends in \\", "\ufeff",
]
UNWRITABLE = ["tab\there", "two\nlines", "CR\rhere", "CRLF\r\n", '"open and\ttab', "\tx"]
EXTRAS = st.one_of(st.none(), st.lists(st.sampled_from(["", "x", "y", "2", "x (2)"]), min_size=12, max_size=12))
# Titles that look like what the policy makes of other titles.
TITLES = st.lists(
    st.sampled_from(["A", "B", "A (x)", "A (2)", "A (3)", "A (x) (2)", "A (2) (2)", "B (y)", "x", ""]),
    min_size=1, max_size=12,
)


@settings(deadline=None, max_examples=500)
@given(TITLES, EXTRAS)
def test_suffix_gives_every_item_a_text_of_its_own(titles, extras):
    catalog = Catalog(["[PAD]", *titles], ["", *extras[:len(titles)]] if extras else None)
    texts = catalog.texts[1:]
    assert len(set(texts)) == len(texts)
    counts = Counter(titles)
    for title, text in zip(titles, texts):
        assert text == title or counts[title] > 1 and text.startswith(f"{title} (") and text not in counts
    assert catalog.titles == ["", *titles]


@settings(deadline=None, max_examples=100)
@given(TITLES, EXTRAS)
def test_share_leaves_titles_alone(titles, extras):
    catalog = Catalog(["[PAD]", *titles], ["", *extras[:len(titles)]] if extras else None, duplicate_titles="share")
    assert catalog.texts == catalog.titles == ["", *titles]


@settings(deadline=None, max_examples=100)
@given(TITLES, st.sampled_from(["suffix", "share"]))
def test_title_ids_group_equal_titles(titles, policy):
    catalog = Catalog(["[PAD]", *titles], duplicate_titles=policy)
    ids = catalog.title_ids.tolist()
    assert catalog.title_ids.dtype == torch.int64 and title_groups(["any", *titles]).tolist() == ids
    assert ids[0] == 0 and 0 not in ids[1:] and len(ids) == len(catalog)
    pairs = itertools.product(range(1, len(ids)), repeat=2)
    assert all((ids[i] == ids[j]) == (catalog.titles[i] == catalog.titles[j]) for i, j in pairs)
    assert set(ids) == set(range(max(ids) + 1))


def test_suffixes():
    catalog = Catalog(["", "A", "B", "A", "A", "A", "C", "C"], ["", "x", "x", "y", "", "x", "", ""])
    assert catalog.texts == ["", "A (x)", "B", "A (y)", "A", "A (x) (2)", "C", "C (2)"]


def test_suffixes_keep_off_titles_that_are_there():
    assert Catalog(["", "A", "A", "A (2)"]).texts == ["", "A", "A (3)", "A (2)"]
    assert Catalog(["", "A", "A", "A (x)"], ["", "x", "y", ""]).texts == ["", "A (x) (2)", "A (y)", "A (x)"]


def test_so_many_texts_always_cover_so_many_titles():
    titles = ["", *"aaaa", *"bbb", "c", "d"]
    assert [Catalog(titles).texts_to_cover(count) for count in (1, 2, 3, 4, 9)] == [1, 5, 8, 9, 10]
    shared = Catalog(titles, duplicate_titles="share")
    assert [shared.texts_to_cover(count) for count in (1, 2, 4)] == [1, 2, 4]


def test_by_popularity():
    catalog = Catalog(["", "A", "B", "C", "D"], popularity=[9, 1, 3, 1, 3])
    assert catalog.by_popularity().tolist() == [2, 4, 1, 3]
    assert Catalog(["", "A", "B"]).by_popularity().tolist() == [1, 2]


def words(texts):
    """A backbone whose token for a word is the length of the word."""
    return [[len(word) for word in text.split()] for text in texts]


@pytest.mark.parametrize("at_once", [1, 2, 10_000])
def test_tokenize_ends_every_title_and_cuts_long_ones(caplog, monkeypatch, at_once):
    monkeypatch.setattr("recbole_flr.data.catalog._AT_ONCE", at_once)
    catalog = Catalog(["", "a bb ccc dddd", "a bb", "a bb ccc"])
    with caplog.at_level(logging.WARNING):
        tokens = catalog.tokenize(SimpleNamespace(encode=words, end_id=0), 3)
    assert [tokens.row(item) for item in range(4)] == [[], [1, 2, 3, 0], [1, 2, 0], [1, 2, 3, 0]]
    assert "1 of 3 titles are longer than 3 tokens" in caplog.text
    caplog.clear()
    catalog.tokenize(SimpleNamespace(encode=words, end_id=0), 4)
    assert not caplog.text


def test_a_cut_keeps_what_tells_equal_titles_apart():
    catalog = Catalog(["", "a bb ccc", "a bb ccc", "a bb ccc", "a bb ccc"], [None, "xxxxx yyyyyyy", "", None, "v wwww xxxxx yyyyyy"])
    assert catalog.texts[1:] == ["a bb ccc (xxxxx yyyyyyy)", "a bb ccc", "a bb ccc (2)", "a bb ccc (v wwww xxxxx yyyyyy)"]
    backbone = SimpleNamespace(encode=words, end_id=0)
    tokens = [catalog.tokenize(backbone, 3).row(item) for item in range(5)]
    assert tokens == [[], [1, 6, 8, 0], [1, 2, 3, 0], [1, 2, 3, 0], [4, 5, 7, 0]]
    assert catalog.tokenize(backbone, 2).row(3) == [1, 3, 0] and catalog.tokenize(backbone, 1).row(4) == [7, 0]


def backbone_of(state="one", end_id=0, calls=None):
    """A backbone of `words` with a name for its tokenizer; counts its calls."""
    def encode(texts):
        (calls if calls is not None else []).append(len(texts))
        return words(texts)

    return SimpleNamespace(encode=encode, end_id=end_id, tokenizer_state=lambda: state)


def test_tokens_are_stored_for_the_same_texts_tokenizer_and_length(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("recbole_flr.data.catalog.STORED_FROM", 3)
    catalog, path, calls = Catalog(["", "a bb ccc dddd", "a bb", "a bb ccc"]), tmp_path / "x.tokens.safetensors", []
    plain = catalog.tokenize(backbone_of(), 3)
    for _ in range(3):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            tokens = catalog.tokenize(backbone_of(calls=calls), 3, path)
        assert torch.equal(tokens.flat, plain.flat) and torch.equal(tokens.start, plain.start)
        assert tokens.flat.dtype == tokens.start.dtype == torch.int64
        assert "1 of 3 titles are longer than 3 tokens" in caplog.text  # also when they are read
    assert calls == [3]
    for changed in ({"state": "two"}, {"end_id": 9}):
        found = catalog.tokenize(backbone_of(**changed, calls=calls), 3, path)
        assert torch.equal(found.flat, catalog.tokenize(backbone_of(**changed), 3).flat)
    assert len(catalog.tokenize(backbone_of(calls=calls), 4, path).flat) == len(plain.flat) + 1
    other = Catalog(["", "a bb ccc dddd", "a bb", "a bb cccc"])
    assert other.tokenize(backbone_of(calls=calls), 4, path).row(3) == [1, 2, 4, 0]
    assert calls == [3] * 5


@pytest.mark.parametrize("smallest, state", [(4, "one"), (3, None)], ids=["few titles", "a tokenizer that cannot tell"])
def test_tokens_that_are_not_stored(tmp_path, monkeypatch, smallest, state):
    monkeypatch.setattr("recbole_flr.data.catalog.STORED_FROM", smallest)
    catalog = Catalog(["", "a bb ccc dddd", "a bb", "a bb ccc"])
    assert catalog.tokenize(backbone_of(state), 9, tmp_path / "x").row(2) == [1, 2, 0]
    assert not list(tmp_path.iterdir())


def test_the_state_of_a_tokenizer_tells_what_it_learned():
    from helpers_data import tiny_backbone

    from recbole_flr.model.backbone import train_tokenizer

    one, same, other = (tiny_backbone(train_tokenizer(texts, 300)) for texts in (["ab ab"] * 9, ["ab ab"] * 9, ["cd cd"] * 9))
    before = one.tokenizer_state()
    assert len(one.encode(["ab", "a"])) == 2
    assert one.tokenizer_state() == before == same.tokenizer_state() != other.tokenizer_state()


# Reading data sets


def interactions(n_items):
    """Two users who together have all items."""
    return {"u1": [f"i{item}" for item in range(n_items)], "u2": [f"i{item}" for item in reversed(range(n_items))]}


def read(root, items, header="item_id:token\ttitle:token", n_items=None, **options):
    """Data set -> the catalogue's titles (dict: item id -> title), and the catalogue."""
    write_set(root, interactions(n_items or len(items)), items, header)
    config = make_config(root, **options)
    dataset = load_dataset(config)
    catalog = Catalog.from_dataset(config, dataset)
    tokens = dataset.field2id_token["item_id"]
    assert len(catalog) == len(tokens) == dataset.item_num
    assert read_titles(config, dataset)[0] == catalog.titles
    return {str(token): title for token, title in zip(tokens[1:], catalog.titles[1:])}, catalog


@pytest.mark.parametrize("kind", ["token", "token_seq"])
@pytest.mark.parametrize("escapes", [True, False])
def test_every_title_reaches_the_model_unchanged(tmp_path, kind, escapes):
    titles = NASTY + UNWRITABLE if escapes else NASTY
    field = escape if escapes else str
    rows = [f"i{number}\t{field(title)}" for number, title in enumerate(titles)]
    found, catalog = read(tmp_path, rows, f"item_id:token\ttitle:{kind}", title_escapes=escapes)
    assert found == {f"i{number}": title for number, title in enumerate(titles)}
    assert sorted(catalog.texts[1:]) == sorted(titles)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=5, max_size=8))
def test_any_title_reaches_the_model_unchanged(tmp_path_factory, titles):
    rows = [f"i{number}\t{escape(title)}" for number, title in enumerate(titles)]
    found, _ = read(tmp_path_factory.mktemp("set"), rows, title_escapes=True)
    assert found == {f"i{number}": title for number, title in enumerate(titles)}


def test_escapes_are_left_alone_unless_asked_for(tmp_path):
    rows = [r"i0	C:\new\table", r"i1	back\\slash", "i2\tB", "i3\tC"]
    found, _ = read(tmp_path / "off", rows)
    assert (found["i0"], found["i1"]) == (r"C:\new\table", r"back\\slash")
    found, _ = read(tmp_path / "on", rows, title_escapes=True)
    assert (found["i0"], found["i1"]) == ("C:\new\table", "back\\slash")


@pytest.mark.parametrize("name", ["title", "movie_title", "name"])
@pytest.mark.parametrize("kind", ["token", "token_seq"])
def test_the_title_field_is_found(tmp_path, name, kind):
    rows = [f"kind {item % 2}\tTitle {item}\ti{item}" for item in range(5)]
    found, _ = read(tmp_path, rows, f"class:token_seq\t{name}:{kind}\titem_id:token")
    assert found == {f"i{item}": f"Title {item}" for item in range(5)}


def test_the_title_field_is_the_first_known_name_or_the_one_that_is_given(tmp_path):
    rows = [f"i{item}\tName {item}\tTitle {item}\tText {item}" for item in range(5)]
    header = "item_id:token\tname:token\ttitle:token\tblurb:token_seq"
    assert read(tmp_path / "a", rows, header)[0]["i1"] == "Title 1"
    assert read(tmp_path / "b", rows, header, TITLE_FIELD="name")[0]["i1"] == "Name 1"
    assert read(tmp_path / "c", rows, header, TITLE_FIELD="blurb")[0]["i1"] == "Text 1"


def test_other_ids_and_separators(tmp_path):
    rows = [f"i{item},A {item}" for item in range(5)]
    root = tmp_path / "mini"
    write(root, "mini.item", ["asin:token,title:token", *rows])
    write(root, "mini.inter", ["who:token,asin:token,when:float", *(f"u,i{item},{item}" for item in range(5))])
    config = make_config(tmp_path, field_separator=",", USER_ID_FIELD="who", ITEM_ID_FIELD="asin", TIME_FIELD="when")
    catalog = Catalog.from_dataset(config, load_dataset(config))
    assert sorted(catalog.titles[1:]) == [f"A {item}" for item in range(5)]


def test_another_encoding(tmp_path):
    write_set(tmp_path, interactions(5))
    lines = ["item_id:token\ttitle:token", *(f"i{item}\tÉtude № {item}".replace("№", "No") for item in range(5))]
    (tmp_path / "mini" / "mini.item").write_bytes("".join(line + "\n" for line in lines).encode("latin-1"))
    config = make_config(tmp_path, encoding="latin-1")
    assert "Étude No 3" in Catalog.from_dataset(config, load_dataset(config)).titles
    config = make_config(tmp_path)
    with pytest.raises(DataError, match="utf-8"):
        Catalog.from_dataset(config, load_dataset(config))


def test_a_wrong_title_field_is_refused_with_the_columns(tmp_path):
    with pytest.raises(DataError, match=r"TITLE_FIELD: found 'titel'.*item_id, title, brand"):
        rows = [f"i{k}\tA\tb" for k in range(5)]
        read(tmp_path, rows, "item_id:token\ttitle:token\tbrand:token", TITLE_FIELD="titel")


def test_a_wrong_duplicate_field_is_refused_with_the_columns(tmp_path):
    with pytest.raises(DataError, match=r"DUPLICATE_FIELD: found 'maker'.*item_id, title"):
        read(tmp_path, [f"i{k}\tA" for k in range(5)], DUPLICATE_FIELD="maker")


def test_no_text_column_is_refused_with_the_columns_and_the_option(tmp_path):
    with pytest.raises(DataError, match=r"no title among .*mini\.item \(item_id, price\).*--TITLE_FIELD"):
        read(tmp_path, [f"i{k}\t1" for k in range(5)], "item_id:token\tprice:float")


def test_no_item_file_is_refused_with_its_place_and_form(tmp_path):
    with pytest.raises(DataError, match=r"found no .*mini\.item.*item_id:token<TAB>title:token"):
        read(tmp_path, None, n_items=5)


def test_items_without_a_title_are_called_by_their_id(tmp_path, caplog):
    rows = ["i0\tA", "i1\t", "i2\t  ", "i4\tB"]  # i3 is not in the file at all
    with caplog.at_level(logging.WARNING):
        found, catalog = read(tmp_path, rows, n_items=5, filter_inter_by_user_or_item=False)
    assert found == {"i0": "A", "i1": "i1", "i2": "i2", "i3": "i3", "i4": "B"}
    assert "3 of 5 items have no title" in caplog.text
    assert sorted(catalog.texts[1:]) == ["A", "B", "i1", "i2", "i3"]


def test_an_id_that_is_another_items_title_is_a_duplicate_like_any(tmp_path):
    _, catalog = read(tmp_path, ["i0\ti1", "i1\t", "i2\tA", "i3\tB"])
    assert sorted(catalog.texts[1:]) == ["A", "B", "i1", "i1 (2)"]


def test_no_warning_where_all_have_titles(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read(tmp_path, [f"i{item}\tA{item}" for item in range(5)])
    assert "no title" not in caplog.text


def test_the_first_of_repeated_ids_counts(tmp_path):
    found, _ = read(tmp_path, ["i0\tfirst", "i0\tsecond", *(f"i{k}\tA{k}" for k in range(1, 5))], n_items=5)
    assert found["i0"] == "first"


@pytest.mark.parametrize("options, expected", [
    ({}, {"Same (Anna)", "Same (\"Bo)", "Same", "Other"}),
    ({"DUPLICATE_FIELD": "color"}, {"Same (red)", "Same (red) (2)", "Same (blue)", "Other"}),
    ({"duplicate_titles": "share"}, {"Same", "Other"}),
])
def test_duplicates_are_told_apart_by_a_column(tmp_path, options, expected):
    rows = ["i0\tSame\tred\tAnna", 'i1\tSame\tred\t"Bo', "i2\tSame\tblue\t", "i3\tOther\tblue\tCleo"]
    _, catalog = read(tmp_path, rows, "item_id:token\ttitle:token\tcolor:token\tbrand:token", **options)
    assert set(catalog.texts[1:]) == expected


def test_duplicates_without_such_a_column_are_numbered(tmp_path):
    _, catalog = read(tmp_path, ["i0\tSame", "i1\tSame", "i2\tOther", "i3\tSame"])
    assert sorted(catalog.texts[1:]) == ["Other", "Same", "Same (2)", "Same (3)"]


def test_escapes_hold_for_the_suffix_too(tmp_path):
    rows = ["i0\tSame\ta\\tb", "i1\tSame\tc", "i2\tX\td", "i3\tY\te"]
    _, catalog = read(tmp_path, rows, "item_id:token\ttitle:token\tbrand:token", title_escapes=True)
    assert "Same (a\tb)" in catalog.texts


def test_popularity_is_of_the_training_rows(tmp_path):
    sequences = {"u1": list("abbcde"), "u2": list("bcbed"), "u3": list("abab")}
    write_set(tmp_path, sequences, [f"{item}\tTitle {item}" for item in "abcde"])
    config = make_config(tmp_path)
    dataset = load_dataset(config)
    train = split(config, dataset)[0]._dataset
    counts = dict(zip(dataset.field2id_token["item_id"].tolist(), training_popularity(train).tolist()))
    # Training targets: b b c (of u1, without d and e), c b (of u2), b (of u3).
    assert counts == {"[PAD]": 0, "a": 0, "b": 4, "c": 2, "d": 0, "e": 0}
    catalog = Catalog.from_dataset(config, train)
    assert np.array_equal(catalog.popularity, training_popularity(train))
    assert [catalog.titles[item] for item in catalog.by_popularity()[:2]] == ["Title b", "Title c"]


def test_find_field_prefers_in_its_own_order():
    config = {"TITLE_FIELD": None, "data_path": ".", "dataset": "x"}
    assert find_field(config, ["name", "title"], "TITLE_FIELD", ("title", "name")) == "title"
    assert find_field(config, ["b"], "TITLE_FIELD", ("title", "name")) is None
    assert find_field({**config, "TITLE_FIELD": "b"}, ["b", "title"], "TITLE_FIELD", ("title",)) == "b"
