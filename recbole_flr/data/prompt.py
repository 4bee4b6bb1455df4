"""All prompt text, once.

A prompt is a head, one chunk an item of the history, and a tail; the thought (or the title) follows. Pieces are
tokenised by themselves and joined as ids, so the catalogue is tokenised once and never again.

`compact`: titles and separators only, for the small backbone that learns them from scratch.
`paper`: an instruction prompt after that of BIGRec / LatentR3 / FLR (one title a line), for a pretrained language model.
"""

from dataclasses import dataclass

import torch

from recbole_flr.data.catalog import Tokens

PAPER_HEAD = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
    "Given a list of {noun}s that a user has chosen, recommend the next {noun} to the user.\n\n"
    "### Input:\n"
    "The user has chosen these {noun}s, oldest first:\n"
)
PAPER_TAIL = "\n### Response:\n"


@dataclass
class Template:
    """Pieces of text around the items; ``start`` puts the tokenizer's start token in front, if it has one."""

    head: str
    before_item: str
    after_item: str
    tail: str
    end_item: bool  # whether a chunk ends with the end of title, as a title that is written does

    @classmethod
    def named(cls, name, noun):
        """``compact`` or ``paper``; noun is what one item is called."""
        if name == "compact":
            return cls("", "", "", "", end_item=True)
        return cls(PAPER_HEAD.format(noun=noun), '"', '"\n', PAPER_TAIL, end_item=False)

    def chunks(self, backbone, titles):
        """Token ids of each item's chunk, and of the head and the tail as two further rows.

        Args:
            backbone: for its tokenizer.
            titles: Tokens, one row an item, each ended by the end of title; row 0 is padding.

        Returns:
            Tokens with n_items + 2 rows: the items' chunks, the head, the tail.
        """
        head, before, after, tail = (
            backbone.encode([text])[0] if text else [] for text in (self.head, self.before_item, self.after_item, self.tail)
        )
        if backbone.start_id is not None:
            head = [backbone.start_id, *head]
        size = titles.start.diff()
        size[1:] -= int(not self.end_item)
        whole = size.clone()
        whole[1:] += len(before) + len(after)
        start = torch.cat([whole.new_zeros(1), whole.cumsum(0)])
        item = torch.arange(len(size)).repeat_interleave(size)
        within = torch.arange(len(item)) - (size.cumsum(0) - size)[item]
        flat = torch.empty(int(start[-1]), dtype=torch.long)
        flat[start[item] + (len(before) + within)] = titles.flat[titles.start[item] + within]
        for place, token in enumerate(before):
            flat[start[1:-1] + place] = token
        for place, token in enumerate(after):
            flat[start[2:] - len(after) + place] = token
        return Tokens.joined([Tokens(flat, start), Tokens.of([head, tail])])
