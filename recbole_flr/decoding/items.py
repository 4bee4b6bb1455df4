"""From the titles that a search found to scores of items, as RecBole wants them.

Shape letters: U users.
"""

import torch

from recbole_flr.errors import DataError
from recbole_flr.ragged import places_in_rows, rows_and_places


def item_scores(beams, trie, n_items):
    """Scores of all items, from the titles that a search found.

    No two items that a user reached get the same score, so everyone who sorts them gets the same order: titles as in `beams`,
    and the items of one title by their priority in the trie. To achieve this, a score that is not below the score before it is
    lowered to the next smaller number of the dtype. The difference is at most one such step for each item that stands before,
    and no item passes an item of another title.

    Args:
        beams: :class:`~recbole_flr.decoding.finished.Beams` of U users.
        trie: the trie that was searched.
        n_items: number of item ids; the trie's item ids must be below it.

    Returns:
        [U, n_items] in the dtype of the scores, -inf for an item that was not reached.

    Raises:
        DataError: an item id of the trie is not below `n_items`.
    """
    highest = int(trie.items.max())
    if highest >= n_items:
        raise DataError(f"the trie holds item {highest}, but n_items is {n_items}; item ids must be below it")
    out = beams.scores.new_full((len(beams.nodes), n_items), -torch.inf)
    user, title = (beams.nodes >= 0).nonzero(as_tuple=True)
    leaf = beams.nodes[user, title]
    first = trie.item_start[leaf].long()
    found, place = rows_and_places(trie.item_start[leaf + 1].long() - first)
    item = trie.items[first[found] + place].long()
    user, title = user[found], title[found]
    place = places_in_rows(user, len(out))

    # As ranks, neighbouring numbers differ by 1. The rank of the item at place i becomes the minimum over j <= i of
    # rank_j - (i - j), which makes the ranks strictly descending.
    width = int(place.max()) + 1 if len(place) else 0
    rank = torch.full((len(out), width), torch.iinfo(torch.int64).max, device=out.device)
    rank[user, place] = _to_rank(beams.scores[user, title]) + place
    rank = rank.cummin(dim=1).values[user, place] - place
    out[user, item] = _from_rank(rank, out.dtype)
    return out


# A floating-point format: its integer twin, the bits of its magnitude, and the largest subnormal magnitude.
_FORMATS = {torch.float32: (torch.int32, 2**31 - 1, 2**23 - 1), torch.float64: (torch.int64, 2**63 - 1, 2**52 - 1)}


def _to_rank(x):
    """Number every floating-point number in ascending order: 0 has rank 0, and neighbouring numbers differ by 1.

    Subnormal numbers get rank 0 as well, because hardware may treat them as 0. [n] -> int64 [n].
    """
    integer, magnitude, subnormal = _FORMATS[x.dtype]
    rank = ((x.abs().view(integer) & magnitude).long() - subnormal).clamp(min=0)
    return torch.where(x < 0, -rank, rank)


def _from_rank(rank, dtype):
    """The inverse of :func:`_to_rank`."""
    integer, _, subnormal = _FORMATS[dtype]
    size = torch.where(rank == 0, 0, rank.abs() + subnormal).to(integer).view(dtype)
    return torch.where(rank < 0, -size, size)
