"""Recognising the release of a file. test_convert tests the conversion."""

from pathlib import Path

import pytest
from helpers_convert import write

from dataset_scripts.amazon import METADATA, PUBLISHED, REVIEWS, columns_of
from dataset_scripts.sources import Source, recognise
from recbole_flr.errors import DataError


def source(*fields, format="jsonl"):
    return Source(Path("reviews.json"), format, "none", list(fields))


BOTH = [*REVIEWS["amazon-2018"].values(), *REVIEWS["amazon-2023"].values()]


@pytest.mark.parametrize("release", REVIEWS)
def test_a_release_is_known_by_its_columns(release):
    for schemas in (REVIEWS, METADATA):
        columns = schemas[release]
        assert columns_of(source("z", *reversed(columns.values())), schemas) == (release, columns)
        assert columns_of(source(*columns.values()), schemas, release) == (release, columns)
    assert columns_of(source(*BOTH), REVIEWS, release) == (release, REVIEWS[release])


def test_reviews_need_all_their_columns():
    for missing in ("user", "item", "time", "rating"):
        fields = [column for role, column in REVIEWS["amazon-2018"].items() if role != missing]
        message = ("Expected reviewerID, asin, unixReviewTime, overall .amazon-2018. or user_id, parent_asin, .*"
                   f"found {', '.join(fields)}. For any other log, name its columns: --columns")  # fmt: skip
        with pytest.raises(DataError, match=message):
            columns_of(source(*fields), REVIEWS)


def test_metadata_need_item_and_title():
    """In JSON lines the other keys may come in later lines. A table has them or not."""
    assert columns_of(source("asin", "title"), METADATA) == ("amazon-2018", METADATA["amazon-2018"])
    assert columns_of(source("asin", "title", "price", format="csv"), METADATA) == (
        "amazon-2018", {"item": "asin", "title": "title", "price": "price"},
    )  # fmt: skip
    with pytest.raises(DataError, match="Expected asin, title .amazon-2018. or parent_asin, title .amazon-2023.; found asin"):
        columns_of(source("asin"), METADATA)


def test_another_release_than_was_said(tmp_path):
    with pytest.raises(DataError, match="reviews.json: .* Expected user_id, parent_asin, timestamp, rating .amazon-2023.; found"):
        columns_of(source(*REVIEWS["amazon-2018"].values()), REVIEWS, "amazon-2023")
    with pytest.raises(DataError, match="no JSON object in the first lines"):
        columns_of(recognise(write(tmp_path / "reviews.json", b"{\n}\n"), "jsonl"), REVIEWS)


def test_roles_of_both_releases_are_the_same():
    assert [list(columns) for columns in REVIEWS.values()] == [["user", "item", "rating", "time"]] * 2
    assert [list(columns) for columns in METADATA.values()] == [["item", "title", "brand", "category", "price"]] * 2
    assert PUBLISHED == {"start": "2017-10-01", "end": "2018-11-01", "min_items": 5000}
