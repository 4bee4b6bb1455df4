"""The catalogue: item id <-> title <-> token ids, and what happens when titles repeat.

Titles are read verbatim from the `.item` file, not through RecBole's reader, which drops what follows a leading quote,
turns a film called "None" into a missing value and joins double blanks.
"""

from collections import Counter
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import numpy as np
import torch

from recbole_flr.data.atomic import header, read_columns, unescape
from recbole_flr.errors import DataError

TITLE_FIELDS = ("title", "movie_title", "name", "item_name", "product_name")
_AT_ONCE = 10_000  # texts whose tokens are Python lists; those of a million took 3 GB
SUFFIX_FIELDS = ("brand", "artist", "author", "release_year", "year")


def item_file(config):
    """Path of the data set's `.item` file."""
    return Path(config["data_path"]) / f"{config['dataset']}.item"


def find_field(config, columns, option, candidates):
    """The column that an option names, else the first candidate that exists, else None.

    Raises:
        DataError: if the option names a column that is not there.
    """
    name = config[option]
    if name is None:
        return next((field for field in candidates if field in columns), None)
    if name not in columns:
        raise DataError(
            f"{option}: found {name!r}, which is no column of {item_file(config)}; its columns are {', '.join(columns)}"
        )
    return name


@dataclass
class Tokens:
    """Ragged token ids: row i is ``flat[start[i]:start[i + 1]]``. int64 tensors on one device."""

    flat: torch.Tensor
    start: torch.Tensor

    @classmethod
    def of(cls, rows):
        """From a list of lists."""
        start = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=start[1:])
        flat = np.fromiter((token for row in rows for token in row), dtype=np.int64, count=int(start[-1]))
        return cls(torch.from_numpy(flat), torch.from_numpy(start))

    @classmethod
    def joined(cls, parts):
        """The rows of several, one after the other."""
        sizes = torch.cat([part.start.diff() for part in parts])
        return cls(torch.cat([part.flat for part in parts]), torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))

    def to(self, device):
        """The same on another device."""
        return Tokens(self.flat.to(device), self.start.to(device))

    def take(self, rows):
        """The given rows (int64 tensor), in that order, as (flat, start) numpy arrays."""
        sizes = self.start.diff()[rows]
        start = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        within = torch.arange(int(start[-1])) - torch.repeat_interleave(start[:-1], sizes)
        return self.flat[torch.repeat_interleave(self.start[rows], sizes) + within].numpy(), start.numpy()

    def row(self, index):
        """Row as a list."""
        return self.flat[self.start[index]:self.start[index + 1]].tolist()


class Catalog:
    """Titles of all items in RecBole's internal order; item 0 is RecBole's padding.

    Args:
        titles: list of str, index = internal item id; index 0 is ignored.
        extras: list of str of the same length: what tells two items of one title apart (brand, year), or None.
        popularity: number of training interactions of each item; orders items that share a title.
        duplicate_titles: ``suffix`` (each item gets a text of its own) or ``share`` (one text, several items).

    Attributes:
        texts: what the model reads and writes for each item.
        title_ids: [n_items] int64, equal for items of equal title; 0 is padding. For the title-level metrics.
    """

    def __init__(self, titles, extras=None, popularity=None, duplicate_titles="suffix"):
        self.titles = [""] + list(titles[1:])
        self.popularity = np.zeros(len(titles)) if popularity is None else np.asarray(popularity)
        index = {}
        self.title_ids = torch.tensor([0] + [index.setdefault(t, len(index) + 1) for t in self.titles[1:]])
        self.texts = list(self.titles)
        if duplicate_titles == "suffix":
            self._make_unique(extras)

    def __len__(self):
        return len(self.titles)

    def _make_unique(self, extras):
        counts = Counter(self.titles[1:])
        if extras is not None:
            for item, (title, extra) in enumerate(zip(self.titles, extras)):
                if item and counts[title] > 1 and extra:
                    self.texts[item] = f"{title} ({extra})"
        taken, number = set(self.titles[1:]), Counter()
        used = set()
        for item, text in enumerate(self.texts[1:], start=1):
            unique = text
            while unique in used or (unique != self.titles[item] and unique in taken):
                number[text] += 1
                unique = f"{text} ({number[text] + 1})"
            used.add(unique)
            self.texts[item] = unique

    @classmethod
    def from_dataset(cls, config, dataset):
        """Read the titles of a RecBole dataset.

        Args:
            config: TITLE_FIELD (found by itself if null), title_escapes, duplicate_titles, DUPLICATE_FIELD.
            dataset: RecBole dataset, for its item vocabulary and, if it is a training set, its popularity.

        Raises:
            DataError: if there is no `.item` file or no text column in it.
        """
        path, id_field = item_file(config), dataset.iid_field
        if not path.is_file():
            raise DataError(
                f"found no {path}; a text model needs the items' titles there: a tab-separated file with the header "
                f"'{id_field}:token<TAB>title:token'"
            )
        encoding = config["encoding"] or "utf-8"
        columns = list(header(path, config["field_separator"], encoding))
        title_field = find_field(config, columns, "TITLE_FIELD", TITLE_FIELDS)
        if title_field is None:
            raise DataError(
                f"found no title among the columns of {path} ({', '.join(columns)}); name the column that holds the "
                "items' text with --TITLE_FIELD=..."
            )
        extra_field = find_field(config, columns, "DUPLICATE_FIELD", SUFFIX_FIELDS)
        wanted = [id_field, title_field] + ([extra_field] if extra_field else [])
        table = read_columns(path, wanted, config["field_separator"], encoding)
        plain = unescape if config["title_escapes"] else str
        row_of = {}
        for row, token in enumerate(table[id_field]):
            row_of.setdefault(token, row)  # as RecBole: the first of repeated ids
        tokens = dataset.field2id_token[id_field]
        rows = [row_of.get(token) for token in tokens]
        titles = [plain(table[title_field][row]) if row is not None else "" for row in rows]
        missing = [item for item in range(1, len(titles)) if not titles[item].strip()]
        for item in missing:
            titles[item] = str(tokens[item])
        if missing:
            getLogger().warning(
                f"{len(missing)} of {len(titles) - 1} items have no title in {path}: their id is used as text"
            )
        extras = [plain(table[extra_field][row]) if row is not None else "" for row in rows] if extra_field else None
        return cls(titles, extras, training_popularity(dataset), config["duplicate_titles"])

    def tokenize(self, backbone, max_tokens):
        """Token ids of every item's text with the end of title.

        Args:
            backbone: see :meth:`Backbone.encode`; its ``end_id`` ends each title.
            max_tokens: longer texts are cut to this many tokens.

        Returns:
            Tokens with one row an item; row 0 (padding) is empty.
        """
        parts, cut = [Tokens.of([[]])], 0
        for first in range(1, len(self.texts), _AT_ONCE):
            rows = backbone.encode(self.texts[first : first + _AT_ONCE])
            cut += sum(len(row) > max_tokens for row in rows)
            parts.append(Tokens.of([row[:max_tokens] + [backbone.end_id] for row in rows]))
        if cut:
            getLogger().warning(f"{cut} of {len(self.texts) - 1} titles are longer than {max_tokens} tokens and were cut "
                                "(max_title_tokens)")
        return Tokens.joined(parts)

    def texts_of_titles(self, count):
        """How many texts are sure to have so many titles among them, if there are so many at all: one more than the count - 1
        titles with the most texts have."""
        title_of = dict(zip(self.texts[1:], self.title_ids[1:].tolist()))  # a text has one title
        sizes = sorted(Counter(title_of.values()).values(), reverse=True)
        return 1 + sum(sizes[: count - 1])

    def by_popularity(self):
        """Item ids from 1 on, most popular first; ties by id."""
        return np.argsort(-self.popularity[1:], kind="stable") + 1


def training_popularity(dataset):
    """Interactions of each item in a dataset: how often it is a target. [n_items] int64."""
    return np.bincount(np.asarray(dataset.inter_feat[dataset.iid_field]), minlength=dataset.item_num)
