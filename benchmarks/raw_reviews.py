"""Makes up reviews and metadata in Amazon's 2018 schema, of any size, for `benchmarks.dataset`.

They are like Amazon's files in everything that costs time:

- a review has about 500 bytes, nearly all of them text that the conversion does not need;
- users and items have heavy tails (5 M reviews have 1.5 M users, most with one review);
- the reviews of an item stand side by side;
- times are at midnight, and later days have more reviews;
- there are some broken lines, items without metadata, unusable titles, and several lines of one item.

The same seed gives the same bytes.
"""

import gzip
import json
from pathlib import Path

import numpy as np

SEED = 2018
ODD_WORDS = (  # as a JSON string holds them
    r"\"great\"", r"don\u2019t", r"\ud83d\ude00", "it's", "good,", "bad.", r"end.\n\nNext", "1st", "&amp;", "&#34;No!&#34;",
)  # fmt: skip


class Words:
    """A long text to cut pieces from, as a JSON string holds it. Word w of `text` begins at `begin[w]`."""

    def __init__(self, rng, length):
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        vocabulary = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, 20_000)]
        drawn = np.minimum(rng.pareto(1.0, length) * 50, len(vocabulary) - 1).astype(int)
        words = np.array(vocabulary, object)[drawn]
        odd = rng.random(length) < 0.03
        words[odd] = np.array(ODD_WORDS, object)[rng.integers(len(ODD_WORDS), size=odd.sum())]
        self.text = " ".join(words)
        self.begin = np.r_[0, np.cumsum([len(word) + 1 for word in words])]

    def pieces(self, rng, lengths):
        """A list of random pieces; piece i has `lengths[i]` words."""
        first = rng.integers(0, len(self.begin) - lengths.max() - 1, len(lengths))
        ends = zip(self.begin[first].tolist(), (self.begin[first + lengths] - 1).tolist())
        return [self.text[begin:end] for begin, end in ends]


def write_raw(folder, n_reviews, n_items, compression="none", seed=SEED, malformed=1e-4):
    """Writes `reviews.json` and `meta.json` (with .gz or .zst) into a folder.

    Args:
        folder: an existing folder.
        n_reviews, n_items: numbers of reviews and items.
        compression: `none`, `gz` or `zst`.
        seed: the same seed gives the same bytes.
        malformed: share of the reviews that are malformed.

    Returns:
        tuple[Path, Path]: both files.
    """
    rng = np.random.default_rng(seed)
    words = Words(rng, 1_000_000)
    asins = np.sort(codes(np.arange(n_items), "B0", 8))
    suffix = {"none": "", "gz": ".gz", "zst": ".zst"}[compression]
    paths = Path(folder) / f"reviews.json{suffix}", Path(folder) / f"meta.json{suffix}"
    for path, lines in zip(paths, (review_lines(rng, words, asins, n_reviews, malformed), meta_lines(rng, words, asins))):
        with opened(path, compression) as handle:
            for chunk in lines:
                handle.write(("\n".join(chunk) + "\n").encode("latin-1"))  # everything but the broken lines is ASCII
    return paths


def write_ratings(folder, n_reviews, n_items, seed=SEED, chunk=1_000_000):
    """Writes `ratings.csv`, in the schema of Amazon's ratings of 2023 (44 bytes a line), and `meta.json` with titles and brands.

    There is one user for 30 reviews. Users and items have heavy tails; times are uniform from 2008 to mid-2017, in no order.

    Args:
        folder: an existing folder.
        n_reviews, n_items: numbers of reviews and items.
        seed: the same seed gives the same bytes.

    Returns:
        tuple[Path, Path]: both files.
    """
    rng, n_users = np.random.default_rng(seed), max(n_reviews // 30, 1)
    users, asins = codes(np.arange(n_users), "A", 13).astype(bytes), codes(np.arange(n_items), "B0", 8).astype(bytes)
    activity = np.cumsum((np.arange(n_users) + 100.0) ** -0.6)
    popularity = np.cumsum((np.arange(n_items) + 30.0) ** -0.95)
    paths = Path(folder) / "ratings.csv", Path(folder) / "meta.json"
    with open(paths[0], "wb") as file:
        file.write(b"user_id,parent_asin,rating,timestamp\n")
        for begin in range(0, n_reviews, chunk):
            size = min(chunk, n_reviews - begin)
            user = users[np.searchsorted(activity, rng.random(size) * activity[-1])]
            item = asins[np.searchsorted(popularity, rng.random(size) * popularity[-1])]
            rating, time = rng.integers(1, 6, size).astype("S1"), rng.integers(12 * 10**11, 15 * 10**11, size).astype("S13")
            fields = []
            for column, end in ((user, b","), (item, b","), (rating, b".0,"), (time, b"\n")):
                fields += [column.view(np.uint8).reshape(size, -1), np.tile(np.frombuffer(end, np.uint8), (size, 1))]
            padded = np.concatenate(fields, axis=1).reshape(-1)
            file.write(padded[padded != 0].tobytes())
    with open(paths[1], "wb") as file:
        for number, asin in enumerate(asins.tolist()):
            line = b'{"parent_asin": "%s", "title": "Thing of a shop, number %d", "store": "Brand %d"}\n'
            file.write(line % (asin, number, number % 997))
    return paths


def opened(path, compression):
    """Opens a file for writing bytes, compressed or not."""
    if compression == "gz":
        return gzip.open(path, "wb", compresslevel=1)
    if compression == "zst":
        import zstandard

        return zstandard.open(path, "wb")
    return open(path, "wb")


def codes(numbers, prefix, length):
    """Turns distinct numbers into distinct texts: the prefix and `length` characters."""
    mixed = np.asarray(numbers, np.uint64) * np.uint64(0x9E3779B97F4A7C15 | 1)  # an odd factor keeps the low bits distinct, too
    digits = (mixed[:, None] >> (5 * np.arange(length, dtype=np.uint64))) & np.uint64(31)
    letters = np.frombuffer(b"0123456789ABCDEFGHJKLMNPQRSTVWXZ", "S1")[digits]
    return np.char.add(prefix, np.ascontiguousarray(letters).view(f"S{length}").ravel().astype(str))


def review_lines(rng, words, asins, n_reviews, malformed, chunk=50_000):
    """Yields lists of lines of reviews, sorted by item."""
    counts = np.minimum(rng.zipf(2.2, n_reviews), 2000)  # reviews of each user
    user = np.repeat(np.arange(n_reviews), counts)[:n_reviews]
    n_users = user[-1] + 1
    last = 6878 * rng.random(n_users) ** 0.25  # the last day of each user; day 0 is 2000-01-01, day 6878 is 2018-10-31
    day = np.maximum(last[user] - rng.exponential(250, n_reviews), 0).astype(int)
    popularity = np.cumsum((np.arange(len(asins)) + 30.0) ** -0.95)
    item = rng.permutation(len(asins))[np.searchsorted(popularity, rng.random(n_reviews) * popularity[-1])]
    order = np.argsort(item, kind="stable")
    user, day, item = user[order], day[order], item[order]

    users = np.char.add(codes(np.arange(n_users), "A", 11), np.array(["", "X", "2Q"])[rng.integers(3, size=n_users)])
    midnight = np.datetime64("2000-01-01") + np.arange(6879)
    dates = [f"{date:%m} {date.day}, {date.year}" for date in midnight.tolist()]
    stamps = midnight.astype("datetime64[s]").astype(int).tolist()
    names = words.pieces(rng, rng.integers(1, 4, 20_000))
    styles = [f'"style": {{"Format:": " {text}"}}, ' for text in words.pieces(rng, rng.integers(1, 3, 200))]
    broken = set(rng.choice(n_reviews, max(2, int(n_reviews * malformed)) if malformed else 0, replace=False).tolist())
    for begin in range(0, n_reviews, chunk):
        size = min(chunk, n_reviews - begin)
        some = lambda pool: np.array(pool, object)[rng.integers(len(pool), size=size)].tolist()
        columns = zip(
            some([""] * 49 + ['"image": ["https://images-na.ssl-images-amazon.com/images/I/71eG75FTJJL._SY88.jpg"], ']),
            some(["5.0"] * 12 + ["4.0"] * 4 + ["3.0"] * 2 + ["2.0", "1.0"]),
            some([""] * 17 + ['"vote": "2", ', '"vote": "3", ', '"vote": "1,024", ']), some(["true"] * 4 + ["false"]),
            day[begin : begin + size].tolist(), users[user[begin : begin + size]].tolist(),
            asins[item[begin : begin + size]].tolist(), some(["", *styles]), some(names),
            words.pieces(rng, np.clip(rng.lognormal(3.1, 1.1, size), 1, 4000).astype(int)),
            words.pieces(rng, rng.integers(1, 8, size)),
        )  # fmt: skip
        lines = [
            f'{{{image}"overall": {rating}, {vote}"verified": {verified}, "reviewTime": "{dates[at]}", "reviewerID": "{who}", '
            f'"asin": "{what}", {style}"reviewerName": "{name}", "reviewText": "{text}", "summary": "{summary}", '
            f'"unixReviewTime": {stamps[at]}}}'
            for image, rating, vote, verified, at, who, what, style, name, text, summary in columns
        ]
        for place in sorted(broken.intersection(range(begin, begin + size))):
            noise = "\xff" + rng.bytes(100).replace(b"\n", b"").decode("latin-1")
            lines[place - begin] = noise if place % 2 else lines[place - begin][: len(lines[place - begin]) // 2]
        yield lines


def meta_lines(rng, words, asins, chunk=50_000):
    """Yields lists of lines of metadata: 2% of the items have no line, 2% have two; 5% of the titles are unusable."""
    listed = asins[rng.random(len(asins)) > 0.02]
    listed = np.sort(np.r_[listed, listed[rng.random(len(listed)) < 0.02]])
    bad = ["", "A", r"<span id=\"productTitle\" class=\"a-size-large\">Some", " ".join(["far too long"] * 9)]
    brands = [text.title() for text in words.pieces(rng, rng.integers(1, 3, 5000)) if "\\" not in text]
    brands += [""] * 1000 + [rf"by\n    \n    {brand}" for brand in brands[:100]]
    shelves = [json.dumps(text.split()) for text in words.pieces(rng, rng.integers(0, 6, 500)) if "\\" not in text]
    bought = [json.dumps(asins[rng.integers(len(asins), size=size)].tolist()) for size in rng.integers(0, 30, 2000)]
    prices = [""] * 800 + [f"${price:,.2f}" for price in rng.lognormal(3, 1, 1000)] + ["$10.50 - $1,020.99"] * 50
    prices += [".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{padding:4px}"] * 10  # Amazon's has these
    for begin in range(0, len(listed), chunk):
        of_chunk = listed[begin : begin + chunk].tolist()
        size = len(of_chunk)
        some = lambda pool: np.array(pool, object)[rng.integers(len(pool), size=size)].tolist()
        titles = words.pieces(rng, rng.integers(1, 15, size))
        for place in np.flatnonzero(rng.random(size) < 0.05).tolist():
            titles[place] = bad[place % len(bad)]
        columns = zip(
            some(shelves), words.pieces(rng, np.clip(rng.lognormal(3.7, 1, size), 1, 2000).astype(int)), titles, some(bought),
            some(brands), rng.integers(1, 10**6, size).tolist(), some(bought), some(prices), of_chunk,
        )  # fmt: skip
        yield [
            f'{{"category": {shelf}, "tech1": "", "description": ["{text}"], "fit": "", "title": "{title}", "also_buy": {also}, '
            f'"tech2": "", "brand": "{brand}", "feature": [], "rank": "{rank:,} in Toys & Games (", "also_view": {view}, '
            f'"details": {{}}, "main_cat": "Toys & Games", "similar_item": "", "date": "", "price": "{price}", "asin": "{what}"}}'
            for shelf, text, title, also, brand, rank, view, price, what in columns
        ]
