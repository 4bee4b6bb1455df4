"""A small random recurrent model in place of a language model, and the score of every title by plain Python."""

import math

import torch
from hypothesis import strategies as st

END, VOCAB, WIDTH = 0, 7, 5
TOKEN = st.integers(1, 3)
LONG = st.tuples(TOKEN, st.lists(st.integers(4, 6), min_size=5, max_size=9)).map(lambda pair: [pair[0], *pair[1]])
CATALOGUE = st.lists((st.lists(TOKEN, max_size=5) | LONG).map(lambda title: title + [END]), min_size=1, max_size=12)
SCORE = st.sampled_from(["full", "trie"])
BUSHY = [[a, b, c, END] for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2)]


class Recurrent:
    """A recurrent model that computes the state behind each prefix once, as the oracle and every search ask for the same ones.

    Subclasses have `prompt` [users, D], `step(state [D], token)` and `logits(state [..., D])`. Change the weights of a model
    only before it is first asked for a state.
    """

    def __init__(self):
        self.states, self.oracle_logits = {}, {}

    def state(self, user, path):
        """The state [D] of a user behind the prompt and the tokens of `path` (a tuple)."""
        found = self.states.get((user, path))
        if found is None:
            found = self.step(self.state(user, path[:-1]), path[-1]) if path else self.prompt[user]
            self.states[user, path] = found
        return found

    def logits_behind(self, user, path):
        """The logits behind a prefix, a list: the values with which the tests compare a search."""
        found = self.oracle_logits.get((user, path))
        if found is None:
            found = self.oracle_logits[user, path] = self.logits(self.state(user, path)).tolist()
        return found


class Model(Recurrent):
    """Next state = tanh(state A + token's embedding): it depends on the whole chain of ancestors, in order."""

    def __init__(self, seed=0, users=1, sharpness=2.0, dtype=torch.float64):
        super().__init__()
        make = torch.Generator().manual_seed(seed)
        self.carry = torch.randn(WIDTH, WIDTH, generator=make, dtype=dtype)
        self.embedding = torch.randn(VOCAB, WIDTH, generator=make, dtype=dtype)
        self.head = torch.randn(WIDTH, VOCAB, generator=make, dtype=dtype) * sharpness
        self.prompt = torch.randn(users, WIDTH, generator=make, dtype=dtype)

    def step(self, state, token):
        return torch.tanh(state @ self.carry + self.embedding[token])

    def logits(self, state):
        return state @ self.head


class Scorer:
    """PrefixScorer over a model. It checks how it is called, and gives padding NaN as its state, which must never be used.

    Attributes:
        calls: width of each call of `extend`.
        rows: positions of each call of `logits`.
        asked: for each user, how many tokens were asked for.
    """

    def __init__(self, model, users=slice(None)):
        self.model, self.hidden = model, model.prompt[users]
        self.users = range(len(model.prompt))[users]
        self.paths = [[] for _ in self.users]  # of each user and slot; None for padding
        self.padding = torch.full_like(self.hidden[0], math.nan)
        self.calls, self.rows, self.asked, self.ended = [], [], [0] * len(self.users), False

    def extend(self, tokens, parents, valid, last=False):
        assert tokens.dtype == parents.dtype == torch.int64 and valid.dtype == torch.bool
        assert tokens.shape == parents.shape == valid.shape
        assert valid.any(1).all() or len(valid) > 1
        assert valid.any(0).all()  # no column is padding for everyone
        assert (tokens[~valid] == 0).all() and (parents[~valid] == -1).all()
        assert (valid.int().diff(dim=1) <= 0).all()  # padding is on the right
        assert not self.ended or last
        self.ended |= last
        self.calls.append(tokens.shape[1])
        states = []
        for row, given in enumerate(zip(tokens.tolist(), parents.tolist(), valid.tolist())):
            paths, before = self.paths[row], len(self.paths[row])
            for token, parent, real in zip(*given):
                assert -1 <= parent < len(paths)
                prefix = () if parent < 0 else paths[parent]
                assert prefix is not None  # the predecessor is no padding
                paths.append((*prefix, token) if real else None)
                states.append(self.model.state(self.users[row], paths[-1]) if real else self.padding)
            self.asked[row] += sum(given[2])
            if last:
                del paths[before:]
        return torch.stack(states).view(*tokens.shape, -1)

    def logits(self, hidden, tokens=None):
        self.rows.append(hidden[..., 0].numel())
        logits = self.model.logits(hidden)
        return logits if tokens is None else logits[..., tokens]


def children(titles, prefix):
    """Tokens that may follow a prefix. `titles` and `prefix` are either all lists or all tuples."""
    return sorted({title[len(prefix)] for title in titles if title[: len(prefix)] == prefix and len(title) > len(prefix)})


def log_prob(model, user, titles, prefix, token, score):
    """Log-probability of one token behind a prefix, over the vocabulary (full) or over the tokens that may follow (trie)."""
    logits = model.logits_behind(user, prefix)
    over = range(VOCAB) if score == "full" else children(titles, prefix)
    return logits[token] - math.log(sum(math.exp(logits[other]) for other in over))


def title_score(model, user, titles, title, score, length_penalty=0.0):
    """The score of a title (a tuple), token by token."""
    total = sum(log_prob(model, user, titles, title[:at], title[at], score) for at in range(len(title)))
    return total / len(title) ** length_penalty


def path_of_leaves(trie):
    """{leaf: title} of a trie, by walking it."""
    paths, stack = {}, [(0, ())]
    while stack:
        node, path = stack.pop()
        tokens, nodes = trie.children(node)
        if not len(tokens):
            paths[node] = path
        stack += [(child, path + (token,)) for token, child in zip(tokens.tolist(), nodes.tolist())]
    return paths
