"""From a user's history to the token ids of a prompt: the text of the templates, then the tensors of a batch.

A prompt consists of a head, one chunk for each item of the history, and a tail. The thought (or the title) follows it.
:class:`Template` holds the text and turns the head, the tail and the chunk of every item into token ids, once for the whole
catalogue. :class:`Collator` then joins these pieces into the prompts of a batch. It only gathers from flat tensors and has no
loop over users.

There are two templates:

- `compact`: titles and separators only, for the small backbone that learns them from scratch.
- `paper`: an instruction prompt after that of BIGRec / LatentR3 / FLR (one title a line), for a pretrained language model.

Shapes: B batch, H history items, L prompt tokens, T title tokens (with the end of title).
"""

from dataclasses import dataclass

import torch
from torch import nn

from recbole_flr.errors import ConfigError
from recbole_flr.ragged import RaggedRows, rows_and_places

IGNORE = -100  # a label that the cross entropy skips

PAPER_HEAD = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
    "Given a list of {noun}s that a user has chosen, {task}\n\n"
    "### Input:\n"
    "The user has chosen these {noun}s, oldest first:\n"
)
PAPER_TASK = "recommend the next {noun} to the user."
PAPER_TAIL = "\n### Response:\n"


@dataclass
class Template:
    """The text around the titles of a prompt.

    Attributes:
        head, tail: text at the start and at the end of a prompt.
        before_item, after_item: text around each title.
        end_item: whether each chunk contains the end-of-title token, as a title that the model writes does.
    """

    head: str
    before_item: str
    after_item: str
    tail: str
    end_item: bool

    @classmethod
    def named(cls, name, noun, task=PAPER_TASK, tail=PAPER_TAIL):
        """A template by its name.

        Args:
            name: `compact` or `paper`.
            noun: the word for one item, such as "toy"; only `paper` uses it.
            task: the end of the instruction of `paper`, with `{noun}` for the noun.
            tail: the end of `paper`.

        Raises:
            ConfigError: there is no template of that name.
        """
        if name == "compact":
            return cls("", "", "", "", end_item=True)
        if name == "paper":
            return cls(PAPER_HEAD.format(noun=noun, task=task.format(noun=noun)), '"', '"\n', tail, end_item=False)
        raise ConfigError(f"prompt: found {name!r}, expected compact | paper")

    def chunks(self, backbone, titles):
        """Token ids of all pieces that prompts are made of.

        Each piece is tokenised by itself, so a title has the same tokens in every prompt.

        Args:
            backbone: its `encode` tokenises the text; its `start_id`, if it has one, becomes the first token of the head.
            titles: RaggedRows, one row an item, each ended by the end of title; row 0 (padding) is empty.

        Returns:
            RaggedRows with n_items + 2 rows: the items' chunks (row 0 is empty), the head, the tail.
        """
        head, before, after, tail = (
            backbone.encode([text])[0] if text else [] for text in (self.head, self.before_item, self.after_item, self.tail)
        )
        if backbone.start_id is not None:
            head = [backbone.start_id, *head]
        return RaggedRows.joined([between(titles, before, after, self.end_item), RaggedRows.of([head, tail])])


def between(titles, before, after, keep_end):
    """Put tokens around every title.

    Args:
        titles: RaggedRows, one row an item, each ended by the end of title; row 0 (padding) is empty and stays so.
        before, after: lists of token ids.
        keep_end: whether each row keeps its end of title, in front of `after`.

    Returns:
        RaggedRows with as many rows.
    """
    kept = titles.lengths()  # tokens of each title
    kept[1:] -= int(not keep_end)
    length = kept.clone()
    length[1:] += len(before) + len(after)
    start = torch.cat([length.new_zeros(1), length.cumsum(0)])
    item, place = rows_and_places(kept)
    flat = torch.empty(int(start[-1]), dtype=torch.long)
    flat[start[item] + (len(before) + place)] = titles.flat[titles.start[item] + place]
    for number, token in enumerate(before):
        flat[start[1:-1] + number] = token
    for number, token in enumerate(after):
        flat[start[2:] - len(after) + number] = token
    return RaggedRows(flat, start)


@dataclass
class Prompts:
    """A batch of prompts.

    Attributes:
        ids: int64 [B, L], token ids.
        mask: bool [B, L], True at real tokens.
        item: int64 [B, L], which item of the history (0 = oldest) a token belongs to, -1 for none.
        shared: how many of the first columns are the same real tokens in all rows, as far as that is known.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    item: torch.Tensor
    shared: int = 0


class Collator:
    """Turns histories into prompts, and items into the tokens of their titles.

    Args:
        titles: RaggedRows of the items' titles, each ended by the end of title; row 0 is empty.
        chunks: RaggedRows from :meth:`Template.chunks`.
        pad: token id of the padding.

    Attributes:
        head_size: tokens of the head, which all prompts share.
    """

    def __init__(self, titles, chunks, pad):
        self.titles, self.chunks, self.pad = titles, chunks, pad
        self.head_size = int(chunks.start[-2] - chunks.start[-3])

    @property
    def tail(self):
        """Token ids of the template's tail, which each prompt ends with: [tokens]."""
        return self.chunks.flat[self.chunks.start[-2]:]

    def to(self, device):
        """Move the catalogue's tokens to a device. Returns the collator itself."""
        self.titles, self.chunks = self.titles.to(device), self.chunks.to(device)
        return self

    def prompts(self, history, length, left=True, head_first=False):
        """The prompts of a batch.

        Args:
            history: int64 [B, H] item ids, oldest first; what stands behind `length` items is not read.
            length: int64 [B], items of each history.
            left: whether the padding stands in front.
            head_first: whether the head stands in front of the padding, in the same columns of all rows, so that it can be read
                once for all of them.

        Returns:
            :class:`Prompts`.
        """
        pieces = self._pieces(history, length)
        head = self.chunks.flat[self.chunks.start[-3]:self.chunks.start[-2]] if head_first else pieces.new_empty(0)
        if head_first:
            pieces = torch.where(pieces == len(self.chunks) - 2, -1, pieces)
        ids, mask, origin = self.chunks.join_and_pad(pieces, self.pad, left)
        item = torch.where((origin >= 1) & (origin <= history.shape[1]), origin - 1, -1)
        if len(head):
            widths = (len(head), 0)
            ids = torch.cat([head.expand(len(ids), -1), ids], dim=1)
            mask, item = nn.functional.pad(mask, widths, value=True), nn.functional.pad(item, widths, value=-1)
        return Prompts(ids, mask, item, len(head))

    def prompt_lengths(self, history, length):
        """Tokens of each prompt without padding: history [B, H], length [B] -> int64 [B]."""
        pieces = self._pieces(history, length)
        tokens = self.chunks.start.to(pieces.device).diff()
        return torch.where(pieces >= 0, tokens[pieces.clamp_min(0)], 0).sum(1)

    def targets(self, items):
        """Titles to be predicted.

        Args:
            items: int64 [B], item ids.

        Returns:
            token ids [B, T], padded on the right; and labels [B, T], which are IGNORE at padding.
        """
        ids, mask, _ = self.titles.join_and_pad(items.unsqueeze(1), self.pad, left=False)
        return ids, torch.where(mask, ids, IGNORE)

    def _pieces(self, history, length):
        """Rows of `chunks` that make up each prompt (head, items, tail): [B, 1 + H + 1], -1 for none."""
        head = len(self.chunks) - 2
        real = torch.arange(history.shape[1], device=history.device) < length.unsqueeze(1)
        ends = history.new_tensor([head, head + 1]).expand(len(history), 2)
        return torch.cat([ends[:, :1], torch.where(real, history, -1), ends[:, 1:]], dim=1)
