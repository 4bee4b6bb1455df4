"""A small random recurrent model in float64 in the place of a language model, and every title's score by plain Python."""

import math

import torch
from hypothesis import strategies as st

END, VOCAB, WIDTH = 0, 7, 5
TOKEN = st.integers(1, 3)
LONG = st.tuples(TOKEN, st.lists(st.integers(4, 6), min_size=5, max_size=9)).map(lambda pair: [pair[0], *pair[1]])
CATALOGUE = st.lists((st.lists(TOKEN, max_size=5) | LONG).map(lambda title: title + [END]), min_size=1, max_size=12)
SCORE = st.sampled_from(["full", "trie"])
BUSHY = [[a, b, c, END] for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2)]


class Model:
    """Next state = tanh(state A + token's embedding): it depends on the whole chain of ancestors, in order."""

    def __init__(self, seed=0, users=1, sharpness=2.0, dtype=torch.float64):
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
    """PrefixScorer over a model; checks what it is called with, and gives padding NaN, which must never be used."""

    def __init__(self, model, users=slice(None)):
        self.model, self.hidden = model, model.prompt[users]
        self.slots, self.usable, self.calls, self.rows, self.asked, self.ended = [], [], [], [], 0, False

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
        before = len(self.slots)
        for column in range(tokens.shape[1]):
            states = []
            for user in range(len(tokens)):
                parent = int(parents[user, column])
                assert -1 <= parent < len(self.slots)
                state = self.hidden[user] if parent < 0 else self.slots[parent][user]
                if valid[user, column]:
                    assert parent < 0 or self.usable[parent][user]
                states.append(self.model.step(state, tokens[user, column]) if valid[user, column] else state * math.nan)
            self.slots.append(torch.stack(states))
            self.usable.append(valid[:, column])
        found = torch.stack(self.slots[before:], dim=1)
        self.asked += int(valid.sum())
        if last:
            del self.slots[before:], self.usable[before:]
        return found

    def logits(self, hidden, tokens=None):
        self.rows.append(hidden[..., 0].numel())
        logits = self.model.logits(hidden)
        return logits if tokens is None else logits[..., tokens]


def children(titles, prefix):
    return sorted({title[len(prefix)] for title in titles if title[: len(prefix)] == prefix and len(title) > len(prefix)})


def log_prob(model, user, titles, prefix, token, score):
    """One token after a prefix, from the start and with no cache."""
    state = model.prompt[user]
    for earlier in prefix:
        state = model.step(state, earlier)
    logits = model.logits(state).tolist()
    over = range(VOCAB) if score == "full" else children(titles, prefix)
    return logits[token] - math.log(sum(math.exp(logits[other]) for other in over))


def title_score(model, user, titles, title, score, length_penalty=0.0):
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
