"""The catalogue: item id <-> title <-> token ids, and what happens when several items have the same title."""

from collections import Counter
from functools import cached_property
from logging import getLogger

import numpy as np
import torch

from recbole_flr.data.loading import read_titles, title_groups
from recbole_flr.ragged import RaggedRows
from recbole_flr.store import fingerprint, stored

STORED_FROM = 2000  # titles; fewer are tokenised as fast as a file is checked
_AT_ONCE = 10_000  # texts that are tokenised in one call: a million in one call took 3 GB of memory


class Catalog:
    """Titles of all items in RecBole's internal order; item 0 is RecBole's padding.

    Args:
        titles: list of str, index = internal item id; index 0 is ignored.
        extras: list of str of the same length, or None: text that tells apart two items of the same title (brand, year).
        popularity: [n_items], number of training interactions of each item; None for 0 each. It orders items that share a text.
        duplicate_titles: `suffix` gives each item a text of its own; `share` gives the same text to all items of one title.

    Attributes:
        titles: list of str, as given, with "" at index 0.
        texts: list of str, what the model reads and writes for each item.
        title_ids: int64 [n_items], see :func:`~recbole_flr.data.loading.title_groups`. The title-level metrics need it.
        popularity: numpy array [n_items].
    """

    def __init__(self, titles, extras=None, popularity=None, duplicate_titles="suffix"):
        self.titles = [""] + list(titles[1:])
        self.popularity = np.zeros(len(titles)) if popularity is None else np.asarray(popularity)
        self.title_ids = title_groups(self.titles)
        self.texts = list(self.titles)
        if duplicate_titles == "suffix":
            self._make_unique(extras)

    def __len__(self):
        """Items, the padding included (n_items)."""
        return len(self.titles)

    def _make_unique(self, extras):
        """Append "(extra)" to titles that repeat, then "(2)", "(3)", ... where two texts would still be equal."""
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
        """The catalogue of a RecBole dataset.

        Args:
            config: `duplicate_titles`, and the options that :func:`~recbole_flr.data.loading.read_titles` reads.
            dataset: RecBole dataset. Its rows are counted as popularity, so it should be the training set.

        Raises:
            DataError: as :func:`~recbole_flr.data.loading.read_titles`.
        """
        titles, extras = read_titles(config, dataset)
        return cls(titles, extras, training_popularity(dataset), config["duplicate_titles"])

    @cached_property
    def item_of(self):
        """dict, title or text -> item id. A title of several items stands for the most popular one."""
        found = {self.titles[item]: item for item in reversed(self.by_popularity().tolist())}
        found.update({text: item for item, text in enumerate(self.texts) if item})
        return found

    def tokenize(self, backbone, max_tokens, path=None):
        """Token ids of every item's text, each ended by the end of title.

        A warning in the log gives the number of texts that were cut.

        Args:
            backbone: see :meth:`Backbone.encode`; its `end_id` is the end of title.
            max_tokens: longer texts are cut to this many tokens; the end of title is not counted. What was appended to a title is
                not cut off, but the title before it.
            path: of a file where the tokens of a catalogue of at least `STORED_FROM` titles are stored. The next call with
                the same texts, tokenizer and `max_tokens` reads them there. None: they are not stored.

        Returns:
            RaggedRows, one row an item; row 0 (padding) is empty.
        """
        state = backbone.tokenizer_state() if path is not None and len(self) > STORED_FROM else None
        if state is None:
            found = self._tokenized(backbone, max_tokens)
        else:
            wanted = fingerprint("tokens", state, backbone.end_id, max_tokens, self.texts[1:], self.titles[1:])
            found = stored(path, wanted, lambda: self._tokenized(backbone, max_tokens), "the tokens of the titles")
        if cut := int(found["cut"]):
            getLogger().warning(f"{cut} of {len(self.texts) - 1} titles are longer than {max_tokens} tokens and were cut "
                                "(max_title_tokens)")
        return RaggedRows(found["flat"].long(), found["start"])

    def _tokenized(self, backbone, max_tokens):
        """The tensors that are stored: token ids as int32, where each title starts, and how many were cut."""
        parts, cut = [RaggedRows.of([[]])], 0
        for first in range(1, len(self.texts), _AT_ONCE):
            rows = backbone.encode(self.texts[first : first + _AT_ONCE])
            for number, row in enumerate(rows):
                if len(row) > max_tokens:
                    rows[number], cut = self._shortened(first + number, row, backbone, max_tokens), cut + 1
            parts.append(RaggedRows.of([[*row, backbone.end_id] for row in rows]))
        rows = RaggedRows.joined(parts)
        return {"flat": rows.flat.int(), "start": rows.start, "cut": torch.tensor(cut)}

    def _shortened(self, item, row, backbone, max_tokens):
        """The tokens `row` of an item's text, cut to `max_tokens`. What was appended to its title is kept: it tells equal titles apart."""
        appended = self.texts[item][len(self.titles[item]):]
        if not appended:
            return row[:max_tokens]
        title, appended = backbone.encode([self.titles[item], appended])
        appended = appended[-max_tokens:]  # a number stands at its end
        return title[:max_tokens - len(appended)] + appended

    def texts_to_cover(self, count):
        """Smallest n such that any n texts cover at least `count` titles.

        A title may have several texts. In the worst case the n - 1 texts that come first are all texts of the `count` - 1
        titles with the most texts. If there are fewer than `count` titles, the result is one more than the number of texts.
        """
        title_of = dict(zip(self.texts[1:], self.title_ids[1:].tolist()))  # a text belongs to one title
        sizes = sorted(Counter(title_of.values()).values(), reverse=True)
        return 1 + sum(sizes[: count - 1])

    def by_popularity(self):
        """Item ids from 1 on, most popular first; of equally popular items the lower id first. int64 [n_items - 1]."""
        return np.argsort(-self.popularity[1:], kind="stable") + 1


def training_popularity(dataset):
    """How often each item is a target in a RecBole dataset: int64 [n_items]."""
    return np.bincount(np.asarray(dataset.inter_feat[dataset.iid_field]), minlength=dataset.item_num)
