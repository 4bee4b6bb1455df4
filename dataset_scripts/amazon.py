"""Amazon's published reviews: the columns of each release, and the window of the published splits.

    python -m dataset_scripts.amazon --reviews CDs_and_Vinyl_5.json.gz --meta meta_CDs_and_Vinyl.json.gz --name cds

does the same as `dataset_scripts.convert`. The releases are those of 2018 (Ni, Li, McAuley, EMNLP 2019) and 2023 (Hou et al.,
arXiv 2403.03952). Both are JSON lines; the ratings of 2023 exist as CSV, too.
"""

import sys

from dataset_scripts.sources import listed
from recbole_flr.errors import DataError

# Release -> role -> name of the column, in files of reviews and of metadata.
REVIEWS = {
    "amazon-2018": {"user": "reviewerID", "item": "asin", "rating": "overall", "time": "unixReviewTime"},
    "amazon-2023": {"user": "user_id", "item": "parent_asin", "rating": "rating", "time": "timestamp"},
}
METADATA = {
    "amazon-2018": {"item": "asin", "title": "title", "brand": "brand", "category": "category", "price": "price"},
    "amazon-2023": {"item": "parent_asin", "title": "title", "brand": "store", "category": "categories", "price": "price"},
}
# The window, and the number of items that must remain, in the D3 / LatentR3 line of work.
PUBLISHED = {"start": "2017-10-01", "end": "2018-11-01", "min_items": 5000}


def columns_of(source, schemas, release="auto"):
    """Recognises the release of a file by its columns.

    Args:
        source (Source): the file.
        schemas: `REVIEWS` or `METADATA`.
        release: a key of `schemas`, or `auto`.

    Returns:
        tuple[str, dict]: the release, and role -> column for the columns that the file has.

    Raises:
        DataError: the file belongs to no known release, or not to the one that was asked for.
    """
    needed = ("user", "item", "time", "rating") if schemas is REVIEWS else ("item", "title")
    for name, columns in schemas.items():
        if release in ("auto", name) and all(columns[role] in source.fields for role in needed):
            any_line = source.format == "jsonl"  # a key may first appear in a later line
            return name, {role: column for role, column in columns.items() if any_line or column in source.fields}
    expected = " or ".join(
        f"{', '.join(columns[role] for role in needed)} ({name})"
        for name, columns in schemas.items()
        if release in ("auto", name)
    )
    if source.format == "jsonl" and not source.fields and _begins_with(source, b"{'"):
        raise DataError(
            f"{source.path}: its lines are Python dictionaries, as in Amazon's release of 2014, and not JSON; rewrite them with "
            "python -c 'import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]' < OLD > NEW"
        )
    raise DataError(
        f"{source.path}: no valid line with the columns of Amazon's files. Expected {expected}; found "
        f"{listed(source.fields) or 'no JSON object in the first lines'}. For any other log, name its columns: --columns "
        "user=..,item=..,time=..,title=.."
    )


def _begins_with(source, start):
    with source.open() as stream:
        return stream.read(len(start)) == start


if __name__ == "__main__":
    from dataset_scripts.convert import main

    sys.exit(main())
