"""Makes a small data set of an invented toy shop, so that everything can be tried without a download.

    python -m dataset_scripts.toys_demo

Writes into `dataset/toys_demo/`:

- RecBole files, made by `dataset_scripts.convert`;
- `raw/reviews.json.gz` and `raw/meta.json.gz`, the raw files in Amazon's 2018 schema;
- `raw/facets.json`: the facets of items and users, from which the choices were drawn.

No review, brand or product is real.

Items: 10 themes x 8 categories make 80 product lines of 5 items. Each item also has a price band and an age. Its title names the
theme, the category and the age.

Users: each has two favourite themes, three categories, a price band and an age, and writes 6 to 14 reviews. The next item is

- with probability `FOLLOW` the one that follows the last item in its line,
- with probability `NOISE` any item,
- otherwise drawn by how well its facets fit the user.

So the order of a history matters, and popularity says little.
"""

import argparse
import gzip
import json
import sys
from bisect import bisect
from itertools import accumulate
from pathlib import Path
from random import Random

from dataset_scripts.convert import KINDS, convert
from recbole_flr.data.atomic import staged
from recbole_flr.errors import FLRError

NAME = "toys_demo"
N_USERS = 900
FOLLOW, NOISE = 0.45, 0.15
FIRST_DAY, N_DAYS = 1506816000, 390  # 2017-10-01 UTC, in seconds; the days on which reviews are written

THEMES = ("Starport", "Dragon Valley", "Coral Reef", "Gear Garage", "Fairy Orchard",
          "Jungle Trail", "Castle Kitchen", "Polar Station", "Dino Creek", "Circus Parade")  # fmt: skip
# Category -> its name in titles, and the five items of a line, in the order in which users buy them.
CATEGORIES = {
    "Building Sets": ("Building Set", ("Starter", "Rescue", "Workshop", "Headquarters", "Grand Expedition")),
    "Puzzles": ("Jigsaw Puzzle", ("First Morning", "Busy Market", "Secret Map", "Night Sky", "Panorama")),
    "Board Games": ("Board Game", ("Junior Race", "Treasure Hunt", "Great Escape", "Rivals", "Master Challenge")),
    "Plush": ("Plush Friend", ("Baby", "Sleepy", "Brave", "Giant", "Singing")),
    "Play Vehicles": ("Toy Truck", ("Mini", "Turbo", "Cargo", "Crane", "Remote Control")),
    "Arts & Crafts": ("Craft Kit", ("Sticker", "Paint", "Weaving", "Clay", "Jewelry")),
    "Science Kits": ("Science Kit", ("Magnet", "Crystal", "Volcano", "Microscope", "Circuit")),
    "Dress Up": ("Costume", ("Hat and", "Cape and", "Explorer", "Captain", "Royal")),
}
AGES = ("3-5", "6-8", "9-12")
PRICE_BANDS = {"budget": (5, 15), "middle": (15, 35), "premium": (35, 90)}  # US dollars
BRANDS = ("Brightpebble", "Otterworks", "Tinderling", "Moonkettle", "Larkspur &amp; Fen", "Pinwhistle")
TEMPLATES = (
    "{theme} {thing} {noun}, Ages {age}",
    "{theme} {thing} {noun}, {pieces} Pieces, Ages {age}",
    "{thing} {noun} from {theme} for Ages {age}",
    "{theme}: {thing} {noun} ({age} Years)",
    "{noun} {theme} {thing} - {pieces} Parts - Ages {age}",
)
# Titles with what programs stumble over in real ones: characters outside ASCII, quotes, entities, blanks at the ends.
ODD_TEMPLATES = {
    7: '{theme} "Sir Ember" {thing} {noun}, Ages {age}',
    101: "{theme} {thing} {noun} 🚒 with Lights, Ages {age}",
    202: "{theme} 秘密基地 {thing} {noun}, Ages {age}",
    303: "  {theme} {thing} {noun} &amp; Trailer, Ages {age} ",
    350: "{theme} &quot;Big Bang&quot; {thing} {noun}, Ages {age}",
}
# Raw lines without a usable title, reviewed by a few users: the conversion drops them.
UNUSABLE = ('<span id="productTitle">Lost Box</span>', "", " ".join(["Very"] * 21) + " Long Title")


def facets(seed=2020):
    """The facets of items and users, from which the reviews are drawn.

    Returns:
        dict with two entries:
        - `items`: asin -> dict of `title` (raw), `brand`, `category`, `theme`, `price` (US dollars), `price_band`, `age`, `line`
          (number of the product line) and `position` in the line (from 0);
        - `users`: reviewer id -> dict of `themes` (weights), `categories` (weights), `price_band` and `age`.
    """
    rng = Random(seed)
    return {"items": _items(rng), "users": _users(rng)}


def generate(folder, seed=2020):
    """Writes `reviews.json.gz`, `meta.json.gz` and `facets.json` into `folder`, all or none.

    The same seed gives the same bytes.

    Returns:
        tuple[Path, Path]: the files of reviews and metadata.
    """
    folder = Path(folder)
    with staged(folder) as temporary:
        _write_raw(temporary, seed)
    return folder / "reviews.json.gz", folder / "meta.json.gz"


def prepare(data_path="dataset"):
    """Makes the data set `<data_path>/toys_demo`, unless all its files are there. They appear all together or not at all.

    Returns:
        Path: the folder of the data set.
    """
    folder = Path(data_path) / NAME
    raw = ("raw/reviews.json.gz", "raw/meta.json.gz", "raw/facets.json")
    if all((folder / name).is_file() for name in [*(f"{NAME}.{kind}" for kind in KINDS), *raw]):
        return folder
    with staged(folder) as temporary:
        (temporary / "raw").mkdir()
        reviews, meta = _write_raw(temporary / "raw", seed=2020)
        convert(reviews, NAME, temporary / "out", meta=meta, min_items=0)
        for path in (temporary / "out" / NAME).iterdir():
            path.rename(temporary / path.name)
        (temporary / "out" / NAME).rmdir()
        (temporary / "out").rmdir()
    return folder


def _items(rng):
    items, line = {}, 0
    for theme in THEMES:
        for category, (noun, things) in CATEGORIES.items():
            age, band, brand = _pick(rng, AGES), _pick(rng, tuple(PRICE_BANDS)), _pick(rng, BRANDS)
            for position, thing in enumerate(things):
                number = len(items)
                low, high = PRICE_BANDS[band]
                pieces = 12 * (1 + int(rng.random() * 30))
                template = ODD_TEMPLATES.get(number, _pick(rng, TEMPLATES))
                title = template.format(theme=theme, thing=thing, noun=noun, age=age, pieces=pieces)
                items[f"T{number:09d}"] = {
                    "title": title, "brand": brand, "category": category, "theme": theme,
                    "price": round(low + rng.random() * (high - low), 2), "price_band": band, "age": age,
                    "line": line, "position": position,
                }  # fmt: skip
            line += 1
    asins = list(items)
    for number in (14, 96, 171, 246, 322, 388):  # gets the title of the item before it, under another brand
        items[asins[number]]["title"] = items[asins[number - 1]]["title"]
        items[asins[number]]["brand"] = BRANDS[(BRANDS.index(items[asins[number]]["brand"]) + 1) % len(BRANDS)]
    for number in (20, 133, 260):  # gets the beginning of another title, without the age
        items[asins[number]]["title"] = items[asins[number + 1]]["title"].rsplit(" ", 2)[0].removesuffix(" for").rstrip(" ,-")
    return items


def _users(rng):
    users = {}
    for number in range(N_USERS):
        themes, categories = _several(rng, THEMES, 2), _several(rng, tuple(CATEGORIES), 3)
        users[f"R{number:06d}"] = {
            "themes": dict(zip(themes, (0.7, 0.3))), "categories": dict(zip(categories, (0.5, 0.3, 0.2))),
            "price_band": _pick(rng, tuple(PRICE_BANDS)), "age": _pick(rng, AGES),
        }  # fmt: skip
    return users


def _history(rng, user, items):
    """The asins that a user reviews, in their order, without repeats."""
    asins = list(items)
    following = {(item["line"], item["position"]): asin for asin, item in items.items()}
    fit = [_fit(user, item) for item in items.values()]
    history = []
    for _ in range(6 + int(rng.random() * 9)):
        draw = rng.random()
        chosen = None
        if draw < FOLLOW and history:
            last = items[history[-1]]
            chosen = following.get((last["line"], last["position"] + 1))
        elif draw > 1 - NOISE:
            chosen = _pick(rng, asins)
        while chosen is None or chosen in history:
            chosen = _pick(rng, asins, fit)
        history.append(chosen)
    return history


def _fit(user, item):
    """How well the facets of an item fit a user; the first items of a line fit best, because users begin with them."""
    return (
        (user["themes"].get(item["theme"], 0) + 0.01)
        * (user["categories"].get(item["category"], 0) + 0.03)
        * (1.0 if user["price_band"] == item["price_band"] else 0.4)
        * (1.0 if user["age"] == item["age"] else 0.4)
        * 0.7 ** item["position"]
    )


def _write_raw(folder, seed):
    truth = facets(seed)
    items, users = truth["items"], truth["users"]
    rng = Random(f"reviews {seed}")  # a generator of its own, so that facets() need not draw the reviews
    reviews = []
    for reviewer, user in users.items():
        history = _history(rng, user, items)
        days = sorted(_several(rng, range(N_DAYS), len(history)))
        rows = [(asin, day, _rating(rng, user, items[asin])) for asin, day in zip(history, days)]
        if rng.random() < 0.02:
            rows.append((f"L{int(rng.random() * len(UNUSABLE)):09d}", days[-1], 1.0))
        reviews += [_review(reviewer, items.get(asin), asin, day, overall) for asin, day, overall in rows]
    meta = [
        {"asin": asin, "title": item["title"], "brand": item["brand"], "category": ["Toys & Games", item["category"]],
         "price": f"${item['price']:.2f}"}
        for asin, item in items.items()
    ]  # fmt: skip
    meta += [{"asin": f"L{number:09d}", "title": title, "category": [], "price": ""} for number, title in enumerate(UNUSABLE)]
    paths = []
    for name, rows in (("reviews.json.gz", reviews), ("meta.json.gz", meta)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # mtime=0: otherwise the header holds the current time, and every run gives other bytes.
        (folder / name).write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
        paths.append(folder / name)
    (folder / "facets.json").write_text(json.dumps(truth, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
    return tuple(paths)


def _review(reviewer, item, asin, day, overall):
    about = f"{item['theme']} {item['category'].lower()}" if item else "box"
    verdict = "Loved it" if overall == 5 else "Good" if overall == 4 else "Not for us"
    return {
        "overall": overall, "verified": True, "reviewerID": reviewer, "asin": asin,
        "reviewText": f"{verdict}: a {about} for our child.", "summary": verdict,
        "unixReviewTime": FIRST_DAY + 86400 * day,
    }  # fmt: skip


def _rating(rng, user, item):
    liked = (item["theme"] in user["themes"]) + (item["category"] in user["categories"])
    return float(max(1, 3 + liked - (rng.random() < 0.2)))


def _pick(rng, values, weights=None):
    """One of the values. Uses `random()` only: Python promises to keep the numbers of this method alone."""
    if weights is None:
        return values[int(rng.random() * len(values))]
    totals = list(accumulate(weights))
    return values[min(bisect(totals, rng.random() * totals[-1]), len(values) - 1)]


def _several(rng, values, count):
    """`count` different values, in random order."""
    left = list(values)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def main(argv=None):
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dataset_scripts.toys_demo", description="Makes the data set toys_demo.")
    parser.add_argument("--out", default="dataset", help="RecBole's data_path (default: dataset)")
    try:
        print(prepare(parser.parse_args(argv).out))
    except FLRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
