"""What the searches share: what they need of a model, what they return, sums of log-probabilities, ragged rows.

Shape letters: U users, S new tokens a user (padded), D hidden width, V vocabulary, N nodes, F finished titles (padded).
"""

from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from recbole_flr.errors import ConfigError, FLRError

SCORES = ("full", "trie")


class PrefixScorer(Protocol):
    """What beam search needs of a language model, for a batch of U users that have each read their prompt.

    Attributes:
        hidden: [U, D], the state at a user's last prompt position, which predicts the title's first token.
    """

    hidden: torch.Tensor

    def extend(self, tokens, parents, valid, last=False):
        """Append tokens to every user's tree and return their hidden states.

        Appended tokens take the next free slots 0, 1, 2, … of their user in the order given, padding included.

        Args:
            tokens: int64 [U, S].
            parents: int64 [U, S], the slot of each token's predecessor, -1 for the prompt. It may be a slot of this very
                call as long as it is to the left: a chain is appended at once.
            valid: bool [U, S], False for padding (token 0, parent -1) on the right, whose hidden state is never read.
            last: nothing will be appended behind these tokens; they need not be kept, and take no slots.

        Returns:
            [U, S, D]: each token's state after its prompt, its ancestors and itself.
        """

    def logits(self, hidden, tokens=None):
        """[..., D] -> [..., V], scores of the next token; of `tokens` [n] alone if they are given: [..., n]."""


@dataclass(frozen=True)
class Beams:
    """Finished titles of each user, best first.

    Attributes:
        nodes: int64 [U, F], leaves of the trie, -1 where padded.
        scores: [U, F] float32 or float64, -inf where padded, finite elsewhere.
    """

    nodes: torch.Tensor
    scores: torch.Tensor


def check_options(score, **counts):
    """Raises a ConfigError if `score` is unknown or one of the counts is below 1."""
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1; it is {value}")
    if score not in SCORES:
        raise ConfigError(f"score must be one of {', '.join(SCORES)}; it is {score!r}")


def precision(scorer, max_logits):
    """The dtype of scores, and how many positions are to be projected on the vocabulary at a time."""
    probe = scorer.logits(scorer.hidden[:1])
    rows = max(1, max_logits // probe.shape[-1])
    if probe.device.type == "cpu":  # blocks that stay near its caches: 3.5 times faster than 2**26 logits at V = 8000
        rows = min(rows, max(256, 2**22 // probe.shape[-1]))
    return torch.promote_types(probe.dtype, torch.float32), rows


# ---- what the model says -----------------------------------------------------------------------------------------------


def child_scores(scorer, trie, state, node, total, score):
    """Sums of log-probabilities of all children of nodes.

    Args:
        scorer: :class:`PrefixScorer`.
        state: [N, D], predicts a node's children.
        node, total: [N], a node and its own sum.
        score: one of `SCORES`.

    Returns:
        sums [N, C], -inf where padded, finite elsewhere; and edges [N, C] of the trie, C the children of the widest node.
    """
    # Padding to the widest node is safe here: a node has at most V children, as many as there are logits.
    edge, inside = trie.edges(node)
    token = trie.tokens(edge)
    if score == "full":
        logits = scorer.logits(state).to(total.dtype)
        child = logits.gather(1, token)
    else:  # only what stands under some node of these
        tokens, place = token.masked_fill(~inside, 0).unique(return_inverse=True)
        child = scorer.logits(state, tokens).to(total.dtype).gather(1, place)
    child = child.masked_fill(~inside, -torch.inf)
    log_prob = child - normaliser(logits if score == "full" else child)
    return finite(total.unsqueeze(1) + log_prob).masked_fill(~inside, -torch.inf), edge


def extend_paths(scorer, trie, user, node, slot, count, slots, last=False):
    """Append the first `count` tokens of the path from each node's parent downwards, the node's own first.

    Args:
        user, node, slot, count: [N], users ascending; the parents' slots; the path has no branch but at its end.
        slots: slots in use.
        last: nothing will be appended behind them.

    Returns:
        hidden [U, S, D] of the new tokens, and the column of each node's own token [N].
    """
    of_node, step = ragged(count)
    token_user, token_node = user[of_node], node[of_node] + step
    column = place_in_run(token_user, len(scorer.hidden))
    shape = len(scorer.hidden), int(column.max()) + 1
    tokens = torch.zeros(shape, dtype=torch.long, device=user.device)
    parents, valid = torch.full_like(tokens, -1), torch.zeros_like(tokens, dtype=torch.bool)
    tokens[token_user, column] = trie.own_tokens(token_node)
    parents[token_user, column] = torch.where(step > 0, slots + column - 1, slot[of_node])
    valid[token_user, column] = True
    return scorer.extend(tokens, parents, valid, last), column[step == 0]


def finish_tails(scorer, trie, hidden, user, node, total, column, left, rows):
    """Sums of the only titles below nodes, "full".

    A tail of n tokens below a node needs the states of the node's own token and of all of the tail's but the last: the state
    of each predicts the next one.

    Args:
        hidden: [U, S, D], in which those of a node start at `column`.
        user, node, total, column, left: [N]; `left` are the tokens of the tail.
        rows: positions that are projected at a time.

    Returns:
        [N].
    """
    of_tail, step = ragged(left)
    target = trie.own_tokens(node[of_tail] + step + 1)
    state_user, state_column = user[of_tail], column[of_tail] + step
    log_probs = total.new_zeros((len(user), int(left.max()) if len(left) else 0))
    for at in torch.arange(len(of_tail), device=user.device).split(rows):
        logits = scorer.logits(hidden[state_user[at], state_column[at]]).to(total.dtype)
        log_prob = logits.gather(1, target[at, None]) - normaliser(logits)
        log_probs[of_tail[at], step[at]] = log_prob.squeeze(1)
    return finite(total + log_probs.sum(1))


def normaliser(logits):
    """Log-sum-exp over the last dimension, [n, 1]."""
    out = logits.logsumexp(dim=-1, keepdim=True)
    if not bool((out < torch.inf).all()):
        raise FLRError("the model's logits are NaN or infinite: its weights are damaged, or training it diverged")
    return out


def finite(score):
    """Impossible titles get a very low score instead of -inf, which means padding; half-way to the lowest number there is,
    which leaves :func:`item_scores` room below it."""
    lowest = torch.finfo(score.dtype).min / 2
    return score.nan_to_num(nan=lowest, neginf=lowest).clamp(min=lowest)


# ---- bounds ------------------------------------------------------------------------------------------------------------


class Final:
    """Scores of finished titles, and bounds of all others: sum / length^length_penalty.

    Sums are not above 0 and only fall along a path. So of the titles below a node the longest counts if the penalty is
    positive, else the shortest.

    Args:
        trie: of M nodes.
        length_penalty: float.
        dtype: of the sums.
    """

    def __init__(self, trie, length_penalty, dtype):
        self._divisor = None
        if length_penalty:
            known = _LENGTHS.setdefault(trie, {})
            longest = length_penalty > 0
            if longest not in known:
                known[longest] = _title_lengths(trie, longest)
            self._divisor = known[longest].to(dtype) ** length_penalty

    def __call__(self, total, node):
        """Sums and nodes, of one shape -> scores of that shape."""
        return total if self._divisor is None else finite(total / self._divisor[node])


_LENGTHS = WeakKeyDictionary()  # trie -> {longest: lengths}


def _title_lengths(trie, longest):
    """Tokens of the longest (or else the shortest) title below each node, its end included: [M]."""
    levels, node = [], torch.zeros(1, dtype=torch.long, device=trie.device)
    parent = node
    while len(node):
        levels.append((parent, node))
        first = trie.first_child[node].long()
        of_node, step = ragged(trie.first_child[node + 1].long() - first)
        parent, node = node[of_node], trie.nodes(first[of_node] + step)
    length = torch.full((trie.num_nodes,), 0 if longest else len(levels), device=trie.device)
    for depth, (parent, node) in reversed(list(enumerate(levels))):
        ends = node[trie.tail_length[node] == 0]
        length[ends] = depth
        if depth:
            length.scatter_reduce_(0, parent, length[node], "amax" if longest else "amin")
    return length


class Best:
    """The best titles that were finished so far, per user.

    Ties: of equal scores those with smaller leaves, whatever the order in which they were found. All titles below an open
    node lie to the same side of a finished leaf, so an open node whose bound equals the last score matters only if it stands
    before that leaf.

    Args:
        users: U.
        top: how many are kept of each.
        dtype, device: of the scores.

    Attributes:
        scores: [U, top], descending, -inf where there is none yet.
        leaves: [U, top], -1 there.
    """

    def __init__(self, users, top, dtype, device):
        self.scores = torch.full((users, top), -torch.inf, dtype=dtype, device=device)
        self.leaves = torch.full((users, top), -1, device=device)

    def beaten_by(self, user, bound, node):
        """Whether a title below an open node, or a leaf, may come before the last one of its user; all of one shape."""
        score, leaf = self.scores[user, -1], self.leaves[user, -1]
        return (bound > score) | ((bound == score) & (node < leaf))

    def add(self, user, score, leaf):
        """Finished titles: their users, ascending, scores and leaves, all [n]."""
        enters = self.beaten_by(user, score, leaf)
        user, leaf, score = user[enters], leaf[enters], score[enters]
        if not len(user):
            return
        top = self.scores.shape[1]
        scores, leaves = append((self.scores, self.leaves), user, (score, leaf))
        leaves, order = leaves.masked_fill(scores == -torch.inf, -1).sort(dim=1)
        scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        self.scores, self.leaves = scores[:, :top], leaves.gather(1, order)[:, :top]

    def beams(self):
        """:class:`Beams`, without columns that are padding for everyone."""
        real = int((self.leaves >= 0).sum(1).max()) if len(self.leaves) else 0
        return Beams(self.leaves[:, :real], self.scores[:, :real])


# ---- rows of different lengths -----------------------------------------------------------------------------------------


def append(rows, user, values):
    """Padded rows with more entries behind: their users, ascending, and their values, all [n].

    Args:
        rows: tuple of [U, P]: sums or scores (padded by -inf), and numbers (padded by -1).
        user: [n].
        values: tuple of [n], as many as there are rows.
    """
    users, old = rows[0].shape
    place = place_in_run(user, users)
    wider = old + (int(place.max()) + 1 if len(place) else 0)
    out = []
    for row, value in zip(rows, values):
        more = row.new_full((users, wider), -torch.inf if row.is_floating_point() else -1)
        more[:, :old] = row
        more[user, old + place] = value
        out.append(more)
    return tuple(out)


def highest(values, k):
    """The k largest of each row, descending, and their columns: [n, k]; of equal ones the left (`topk` promises nothing)."""
    kth = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > kth, values == kth
    room = k - above.sum(dim=1, keepdim=True)
    column = (above | (equal & (equal.cumsum(dim=1) <= room))).nonzero()[:, 1].view(len(values), k)
    top, order = values.gather(1, column).sort(dim=1, descending=True, stable=True)
    return top, column.gather(1, order)


def ragged(count):
    """Rows of `count` entries laid end to end: each entry's row, and its number within the row."""
    row = torch.arange(len(count), device=count.device).repeat_interleave(count)
    return row, torch.arange(len(row), device=count.device) - (count.cumsum(0) - count)[row]


def place_in_run(key, num_keys):
    """For ascending `key` in 0 .. num_keys - 1: each entry's number among those of the same key."""
    start = torch.searchsorted(key, torch.arange(num_keys, device=key.device))
    return torch.arange(len(key), device=key.device) - start[key]
