"""Which histories are the beginning of others, so that one pass over the longest serves all of them.

The training rows of a user are prefixes of his sequence: [a], [a, b], [a, b, c], ... Once a history has reached its greatest length
it moves on, and begins with another item. Histories of different users count as well, such as two that begin with the same item.

Shapes: R rows, H items of a history.
"""

import numpy as np
import torch


def prefix_sources(history, length):
    """For each row, the row of a longest history that begins with its history.

    "Longest" means that no other row continues this history.

    Args:
        history: int64 [R, H] item ids from 1 on; what stands after `length` items does not count.
        length: int64 [R].

    Returns:
        int64 [R], row numbers, on the device of `history`. Rows of equal histories have the same source.
    """
    items, lengths = history.cpu().numpy(), length.cpu().numpy()
    real = np.arange(items.shape[1]) < lengths[:, None]
    items = np.where(real, items, 0)
    order = np.lexsort(items.T[::-1])  # a prefix stands before all that begin with it
    items, real = items[order], real[order]
    goes_on = np.zeros(len(items), dtype=bool)
    goes_on[:-1] = ((items[:-1] == items[1:]) | ~real[:-1]).all(1)
    end = np.where(goes_on, len(items), np.arange(len(items)))
    source = np.empty(len(items), dtype=np.int64)
    source[order] = order[np.minimum.accumulate(end[::-1])[::-1]]
    return torch.from_numpy(source).to(history.device)
