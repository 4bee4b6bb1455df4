"""What the searches need of a language model: a protocol, and sums of log-probabilities under a trie.

A search keeps paths of the trie. For each path it knows the sum of the log-probabilities of its tokens. The functions here
extend such sums: to all children of a node (:func:`child_scores`), or to the end of a tail (:func:`tail_scores`), which is the
part of a title behind its last branch. The log-probability of a token is over the whole vocabulary (score `full`) or over the
children of its node (score `trie`).

Shape letters: U users, S new tokens a user (padded), D hidden width, V vocabulary, N nodes, C children (padded).
"""

from typing import Protocol

import torch

from recbole_flr.errors import ConfigError, FLRError
from recbole_flr.ragged import places_in_rows, rows_and_places

SCORES = ("full", "trie")


class PrefixScorer(Protocol):
    """What a search needs of a language model, for a batch of U users whose prompts have been read.

    The tokens that a search tries for a user form a tree behind the user's prompt. Each token of the tree has a number, its
    slot.

    Attributes:
        hidden: [U, D], the state at a user's last prompt position, which predicts the title's first token.
    """

    hidden: torch.Tensor

    def extend(self, tokens, parents, valid, last=False):
        """Append tokens to every user's tree and return their hidden states.

        The new tokens take the next free slots 0, 1, 2, … of their user in the order given; padding takes slots as well.

        Args:
            tokens: int64 [U, S].
            parents: int64 [U, S], the slot of each token's predecessor, -1 for the prompt. The predecessor may be a token of the
                same call if it is further to the left. So a whole chain can be appended in one call.
            valid: bool [U, S], False for padding (token 0, parent -1). Padding is on the right. Its states are never read.
            last: whether this is the last call. Then the tokens need not be kept, and they take no slots.

        Returns:
            [U, S, D]: the state of each token after its prompt, its ancestors and itself.
        """

    def logits(self, hidden, tokens=None):
        """Logits of the next token: [..., D] -> [..., V]; with `tokens` [n], of these token ids only: [..., n]."""


def check_options(score, **counts):
    """Check the options of a search.

    Raises:
        ConfigError: `score` is not one of `SCORES`, or one of the counts (option name = value) is below 1.
    """
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1; it is {value}")
    if score not in SCORES:
        raise ConfigError(f"score must be one of {', '.join(SCORES)}; it is {score!r}")


def dtype_and_block(scorer, max_logits):
    """How the scores of a search are computed.

    Args:
        scorer: :class:`PrefixScorer`.
        max_logits: how many logits may exist at a time.

    Returns:
        the dtype of the scores, float32 or wider; and the number of positions to be projected on the vocabulary at a time.
    """
    probe = scorer.logits(scorer.hidden[:1])
    positions = max(1, max_logits // probe.shape[-1])
    if probe.device.type == "cpu":  # blocks that stay near its caches: 3.5 times faster than 2**26 logits at V = 8000
        positions = min(positions, max(256, 2**22 // probe.shape[-1]))
    return torch.promote_types(probe.dtype, torch.float32), positions


def child_scores(scorer, trie, state, node, total, score):
    """Sums of log-probabilities of all children of nodes.

    Args:
        scorer: :class:`PrefixScorer`.
        trie: :class:`~recbole_flr.decoding.trie.Trie`.
        state: [N, D], the states that predict the nodes' children.
        node, total: [N], the nodes and their own sums.
        score: one of `SCORES`.

    Returns:
        sums [N, C], finite, -inf where padded; and the trie's edges to the children [N, C]. C is the number of children of the
        widest node.

    Raises:
        FLRError: the model's logits are NaN or infinite.
    """
    # Padding to the widest node is affordable: a node has at most V children, and there are V logits for it anyway.
    edge, inside = trie.edges(node)
    token = trie.tokens(edge)
    if score == "full":
        logits = scorer.logits(state).to(total.dtype)
        child = logits.gather(1, token)
    else:  # ask only for tokens that are a child of some node here
        tokens, place = token.masked_fill(~inside, 0).unique(return_inverse=True)
        child = scorer.logits(state, tokens).to(total.dtype).gather(1, place)
    child = child.masked_fill(~inside, -torch.inf)
    log_prob = child - log_normaliser(logits if score == "full" else child)
    return clamp_to_finite(total.unsqueeze(1) + log_prob).masked_fill(~inside, -torch.inf), edge


def extend_paths(scorer, trie, user, node, slot, count, slots, last=False):
    """Append the first tokens of paths to the users' trees. A path begins with a node's own token and goes downwards.

    Args:
        scorer, trie: as for :func:`child_scores`.
        user, node: [N], users ascending.
        slot: [N], the slots of the nodes' parents.
        count: [N], how many tokens of each path to append. The path may branch at its last token only.
        slots: number of slots in use.
        last: as for :meth:`PrefixScorer.extend`.

    Returns:
        the new tokens' states [U, S, D], and the column in which each path's first token stands [N].
    """
    path, step = rows_and_places(count)
    token_user, token_node = user[path], node[path] + step
    column = places_in_rows(token_user, len(scorer.hidden))
    shape = len(scorer.hidden), int(column.max()) + 1
    tokens = torch.zeros(shape, dtype=torch.long, device=user.device)
    parents, valid = torch.full_like(tokens, -1), torch.zeros_like(tokens, dtype=torch.bool)
    tokens[token_user, column] = trie.own_tokens(token_node)
    parents[token_user, column] = torch.where(step > 0, slots + column - 1, slot[path])
    valid[token_user, column] = True
    return scorer.extend(tokens, parents, valid, last), column[step == 0]


def tail_scores(scorer, trie, hidden, user, node, total, column, left, block):
    """Sums of log-probabilities of whole titles, from nodes that have only one title left below them. For score `full`.

    A tail of n tokens needs n states: that of the node's own token, and those of all tokens of the tail but the last. The state
    of each token predicts the next one.

    Args:
        scorer, trie: as for :func:`child_scores`.
        hidden: [U, S, D], states of the node's own token and of its tail's, in consecutive columns.
        user, node, total: [N], total is the sum of the node.
        column: [N], where the states of each node begin.
        left: [N], tokens of the tail.
        block: number of positions that are projected on the vocabulary at a time.

    Returns:
        [N].

    Raises:
        FLRError: the model's logits are NaN or infinite.
    """
    tail, step = rows_and_places(left)
    target = trie.own_tokens(node[tail] + step + 1)
    state_user, state_column = user[tail], column[tail] + step
    log_probs = total.new_zeros((len(user), int(left.max()) if len(left) else 0))
    for at in torch.arange(len(tail), device=user.device).split(block):
        logits = scorer.logits(hidden[state_user[at], state_column[at]]).to(total.dtype)
        log_prob = logits.gather(1, target[at, None]) - log_normaliser(logits)
        log_probs[tail[at], step[at]] = log_prob.squeeze(1)
    return clamp_to_finite(total + log_probs.sum(1))


def log_normaliser(logits):
    """Log-sum-exp over the last dimension: [n, C] -> [n, 1].

    Raises:
        FLRError: it is NaN or infinite.
    """
    out = logits.logsumexp(dim=-1, keepdim=True)
    if not bool((out < torch.inf).all()):
        raise FLRError("the model's logits are NaN or infinite: its weights are damaged, or training it diverged")
    return out


def clamp_to_finite(score):
    """Give impossible titles (-inf or NaN) a very low score, because -inf means padding. Any shape.

    The very low score is half of the lowest number of the dtype. So :func:`~recbole_flr.decoding.items.item_scores` can still
    go below it.
    """
    lowest = torch.finfo(score.dtype).min / 2
    return score.nan_to_num(nan=lowest, neginf=lowest).clamp(min=lowest)
