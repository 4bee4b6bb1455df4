"""Downloads Amazon's published reviews and metadata, and converts them.

    python -m dataset_scripts.download toys                      # Toys_and_Games 2018 -> dataset/toys/raw/
    python -m dataset_scripts.download cds games --convert       # and converts them: RecBole files in dataset/cds, dataset/games
    python -m dataset_scripts.download toys-2023 --convert       # the release of 2023; or: toys --release 2023

The releases are those of Ni, Li and McAuley (EMNLP 2019; https://nijianmo.github.io/amazon) and of Hou et al. (arXiv
2403.03952; https://amazon-reviews-2023.github.io). Neither publishes checksums: `fetch` checks the size, and the conversion
checks gzip's own checksum. If a download was interrupted, run the same command again: it continues where it stopped.
"""

import argparse
import logging
import sys
from pathlib import Path

from dataset_scripts.fetch import fetch
from recbole_flr.errors import ConfigError, FLRError
from recbole_flr.errors import nearest

BASE = "https://mcauleylab.ucsd.edu/public_datasets/data"
OLDER_BASE = "https://datarepo.eng.ucsd.edu/mcauley_group/data"  # the older place of the same files
CATEGORIES = {
    "toys": "Toys_and_Games",
    "cds": "CDs_and_Vinyl",
    "games": "Video_Games",
    "instruments": "Musical_Instruments",
    "movies": "Movies_and_TV",
}
# Release -> suffix of the names of its data sets; paths below BASE: reviews, all reviews (--full), metadata.
# The first file of 2018 is the 5-core of all reviews. It is far smaller, and contains the k-core of any window if k >= 5.
RELEASES = {
    "2018": ("", "amazon_v2/categoryFilesSmall/{}_5.json.gz", "amazon_v2/categoryFiles/{}.json.gz",
             "amazon_v2/metaFiles2/meta_{}.json.gz"),
    "2023": ("-2023", "amazon_2023/raw/review_categories/{}.jsonl.gz", "amazon_2023/raw/review_categories/{}.jsonl.gz",
             "amazon_2023/raw/meta_categories/meta_{}.jsonl.gz"),
}  # fmt: skip
NAMES = {
    short + end: (release, category) for release, (end, *_) in RELEASES.items() for short, category in CATEGORIES.items()
}


def addresses(name, *, full=False, mirror=None):
    """The addresses of a data set.

    Args:
        name: `toys` (2018), `toys-2023`, ...
        full: all reviews of 2018 instead of their 5-core.
        mirror: address to use instead of `BASE`.

    Returns:
        tuple[str, str]: of the reviews, and of the metadata.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in NAMES:
        raise ConfigError(f"data set {name!r} cannot be downloaded; expected one of {', '.join(NAMES)}; "
                          f"the nearest is {nearest(name, NAMES)!r}")
    release, category = NAMES[name]
    _, reviews, all_reviews, meta = RELEASES[release]
    base = (mirror or BASE).rstrip("/")
    return tuple(f"{base}/{path.format(category)}" for path in (all_reviews if full else reviews, meta))


def download(name, out="dataset", *, full=False, mirror=None, attempts=5, timeout=30, show_progress=True):
    """Downloads the reviews and metadata of a data set into `<out>/<name>/raw`, under their published names.

    Files that are there already are not downloaded again.

    Args:
        name, full, mirror: as in `addresses`.
        out: RecBole's data_path.
        attempts, timeout, show_progress: as in `fetch`.

    Returns:
        tuple[Path, Path]: the files of reviews and of metadata.

    Raises:
        ConfigError, DataError: as `addresses` and `fetch`.
    """
    advice = f"; or use another server: python -m dataset_scripts.download {name} --mirror URL, such as {OLDER_BASE}"
    return tuple(
        fetch(url, Path(out) / name / "raw" / url.rsplit("/", 1)[1], attempts=attempts, timeout=timeout,
              show_progress=show_progress, advice=advice)
        for url in addresses(name, full=full, mirror=mirror)
    )  # fmt: skip


def prepare(name, data_path="dataset", mirror=None, *, full=False, show_progress=True):
    """Downloads and converts a data set, unless all converted files are there already.

    Returns:
        Path: the folder of the data set, with RecBole's files and `raw/`.

    Raises:
        ConfigError, DataError: as `download` and `dataset_scripts.convert.convert`.
    """
    from dataset_scripts.convert import KINDS, convert  # imported here, as a download alone does not need DuckDB

    addresses(name)
    folder = Path(data_path) / name
    if all((folder / f"{name}.{kind}").is_file() for kind in KINDS):
        return folder
    reviews, meta = download(name, data_path, full=full, mirror=mirror, show_progress=show_progress)
    # The window of movies has fewer than 5,000 items, so its start would move back. Our results keep the start.
    options = {"min_items": 0} if name == "movies" else {}
    convert(reviews, name, data_path, meta=meta, show_progress=show_progress, **options)
    return folder


def main(argv=None):
    """The command line. Returns the exit status: 0; 2 after a one-line message; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m dataset_scripts.download", description="Downloads Amazon reviews.")
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"data sets: {', '.join(NAMES)}")
    parser.add_argument("--release", choices=list(RELEASES), help="release of the data sets: toys of 2023 is toys-2023 (default: 2018)")
    parser.add_argument("--out", default="dataset", help="RecBole's data_path; files go to OUT/NAME/raw (default: dataset)")
    parser.add_argument("--full", action="store_true", help="all reviews of 2018 instead of their 5-core; needed for k < 5")
    parser.add_argument("--mirror", metavar="URL", help=f"server to use instead of {BASE}")
    parser.add_argument("--convert", action="store_true", help="also convert; OUT/NAME is then ready for RecBole")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        names = [_with_release(name, args.release) for name in args.names]  # check all names before the first download
        for name in names:
            if args.convert:
                print(prepare(name, args.out, args.mirror, full=args.full))
            else:
                print(*download(name, args.out, full=args.full, mirror=args.mirror), sep="\n")
    except FLRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = Path(args.out) / "NAME" / "raw"
        print(f"\ninterrupted; the bytes so far are kept ({kept}/*.part); run the same command again", file=sys.stderr)
        return 130
    return 0


def _with_release(name, release):
    """The name of a data set, from a name on the command line and `--release`. Raises a ConfigError for an unknown name."""
    end = RELEASES[release][0] if release else ""
    name = name if end and name.endswith(end) else name + end
    addresses(name)  # raises for an unknown name
    if release and NAMES[name][0] != release:
        raise ConfigError(f"data set {name!r} belongs to the release {NAMES[name][0]}, but --release is {release}")
    return name


if __name__ == "__main__":
    sys.exit(main())
