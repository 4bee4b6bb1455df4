"""The scores of titles behind a thought: as a loss, for one item or many of them, and for several thoughts of a prompt.

Shapes: B batch, T title tokens (with the end of title), G thoughts of a prompt, C titles of a row, D width, V vocabulary.
"""

import torch
from torch import nn

from recbole_flr.contracts import TargetScores
from recbole_flr.data.prompt import IGNORE
from recbole_flr.model.tree import TreeDecoder

TITLES_AT_ONCE = 16  # titles of a row that are read in one pass
LABELS_AT_ONCE = 4096  # positions whose logits over the vocabulary are in memory at the same time


class TitleScores:
    """A part of :class:`recbole_flr.model.titles.TitleModel`, which has the attributes that it needs: `backbone`, `collator`, `trie`,
    `score` and `length_penalty`.
    """

    def title_states(self, thought, titles):
        """States that predict each token of a title.

        Args:
            thought: of B prompts.
            titles: [B, T] token ids.

        Returns:
            [B, T, D]; state t predicts token t.
        """
        context = thought.context
        new = torch.cat([thought.embedding.unsqueeze(1), self.backbone.embed(titles[:, :-1])], dim=1)
        positions = context.length.unsqueeze(1) + torch.arange(new.shape[1], device=new.device)
        mask = torch.cat([context.mask, context.mask.new_ones(new.shape[:2])], dim=1)
        if context.cache is not None:
            return self.backbone(new, mask, positions, context.cache)[0]
        positions = torch.cat([context.positions, positions], dim=1)
        hidden, _ = self.backbone(torch.cat([context.embeddings, new], dim=1), mask, positions)
        return hidden[:, -new.shape[1]:]

    def branch_states(self, context, thoughts, titles):
        """States that predict each token of a title after each of several thoughts, which share the prompt's cache.

        The G continuations of a prompt are branches of one sequence: none sees another.

        Args:
            context: of B prompts, with a cache.
            thoughts: [B, G, D], embeddings that come right before the title.
            titles: [B, T] token ids.

        Returns:
            [B, G, T, D].
        """
        group, steps = thoughts.shape[1], titles.shape[1]
        title = self.backbone.embed(titles[:, :-1]).unsqueeze(1).expand(-1, group, -1, -1)
        new = torch.cat([thoughts.unsqueeze(2), title], dim=2).flatten(1, 2)
        positions = (context.length.unsqueeze(1) + torch.arange(steps, device=new.device)).repeat(1, group)
        causal = torch.ones(steps, steps, dtype=torch.bool, device=new.device).tril()
        own = torch.kron(torch.eye(group, dtype=torch.bool, device=new.device), causal)
        rows = len(new)
        mask = torch.cat([context.mask.unsqueeze(1).expand(-1, len(own), -1), own.expand(rows, -1, -1)], dim=2)
        return self.backbone(new, mask, positions, context.cache)[0].unflatten(1, (group, steps))

    def title_loss(self, thought, target):
        """Mean cross entropy of the tokens of the target's title, with its end.

        Args:
            thought: of B prompts.
            target: [B] item ids.

        Returns:
            a scalar, and the state of the thought [B, D], which predicts the first token.
        """
        titles, labels = self.collator.targets(target)
        labelled = (labels != IGNORE).nonzero(as_tuple=True)  # once: each use of a mask as an index waits for the device
        states = self.title_states(thought, titles)
        logits = self.backbone.logits(states[labelled])  # only labelled positions
        return nn.functional.cross_entropy(precise(logits), labels[labelled]), states[:, 0]

    def target_tokens(self, target):
        """Over how many tokens :meth:`title_loss` takes the mean: [B] item ids -> a scalar."""
        return (self.collator.targets(target)[1] != IGNORE).sum()

    def title_log_probs(self, thought, items):
        """Log-probability of one item's title for each row, by a full pass over it: [B].

        Args:
            thought: of B prompts.
            items: [B] item ids.
        """
        titles, labels = self.collator.targets(items)
        labelled = labels != IGNORE
        logits = precise(self.backbone.logits(self.title_states(thought, titles)[labelled]))
        if self.score == "trie":
            logits = logits.masked_fill(~self._children(titles, logits.shape[-1])[labelled], float("-inf"))
        token = logits.log_softmax(-1).gather(-1, titles[labelled].unsqueeze(-1)).squeeze(-1)
        total = token.new_zeros(len(titles)).index_add(0, labelled.nonzero()[:, 0], token)
        return total / labelled.sum(-1) ** self.length_penalty

    @torch.no_grad()
    def candidate_log_probs(self, thought, items):
        """Log-probabilities of the titles of several items for each row, over the tokens that the option `score` names.

        The prompt's cache serves all of them: each title is a branch behind the thought.

        Args:
            thought: of B prompts, read with a cache.
            items: [B, C] item ids.

        Returns:
            [B, C].
        """
        decoder = TreeDecoder(self.backbone, thought)
        return torch.cat([self._branch_log_probs(decoder, part) for part in items.split(TITLES_AT_ONCE, dim=1)], dim=1)

    def _branch_log_probs(self, decoder, items):
        rows, count = items.shape
        titles, labels = (part.view(rows, count, -1) for part in self.collator.targets(items.flatten()))
        labelled, steps = labels != IGNORE, titles.shape[2] - 1
        slot = torch.zeros_like(titles)  # of the state that predicts a token; the thought is in front of all
        states = decoder.hidden.unsqueeze(1)
        if steps:
            read = labelled[..., 1:].flatten(1)
            order = (~read).long().argsort(dim=1, stable=True)[:, :int(read.sum(1).max())]  # without the padding between titles
            place = torch.arange(order.shape[1], device=items.device).expand(rows, -1)
            parents = torch.where(order % steps == 0, -1, place - 1)
            later = decoder.extend(titles[..., :-1].flatten(1).gather(1, order), parents, read.gather(1, order), last=True)
            states = torch.cat([states, later], dim=1)
            slot[..., 1:] = torch.zeros_like(read, dtype=torch.long).scatter(1, order, place + 1).view(rows, count, steps)
        total = torch.zeros(rows, count, dtype=precise(states).dtype, device=items.device)
        for row, title, step in zip(*(index.split(LABELS_AT_ONCE) for index in labelled.nonzero(as_tuple=True))):
            logits = precise(self.backbone.logits(states[row, slot[row, title, step]]))
            if self.score == "trie":
                number = row * count + title
                first, last = int(number[0]), int(number[-1])
                allowed = self._children(titles.flatten(0, 1)[first:last + 1], logits.shape[-1])[number - first, step]
                logits = logits.masked_fill(~allowed, -torch.inf)
            own = logits.gather(1, titles[row, title, step].unsqueeze(1)) - logits.logsumexp(1, keepdim=True)
            total.index_put_((row, title), own.squeeze(1), accumulate=True)
        return total / labelled.sum(-1) ** self.length_penalty

    def score_titles(self, context, thoughts, target, greedy=False):
        """See :meth:`recbole_flr.contracts.Thinker.score_target`. The steps are the tokens of the target's title.

        `match` needs no generation: greedy decoding under the trie writes the title if and only if each of its tokens is the
        best child on its path.
        """
        titles, labels = self.collator.targets(target)
        mask = labels != IGNORE
        labelled = mask.nonzero(as_tuple=True)
        hidden = self.branch_states(context, thoughts, titles)
        logits = precise(self.backbone.logits(hidden.transpose(1, 2)[labelled]))  # [labelled tokens, G, V]
        own = logits.gather(-1, titles[labelled][:, None, None].expand(-1, logits.shape[1], 1))
        log_probs = hidden.new_zeros(*mask.shape, logits.shape[1], dtype=logits.dtype)
        log_probs[labelled] = (own - logits.logsumexp(-1, keepdim=True)).squeeze(-1)
        match = self._greedy_match(logits.detach(), titles, mask, labelled) if greedy else None
        return TargetScores(log_probs.transpose(1, 2), mask, match)

    def _greedy_match(self, logits, titles, mask, labelled):
        """[labelled tokens, G, V], [B, T], [B, T], rows and columns of the labelled tokens -> [B, G] bool."""
        row, step, token = self.trie.along(titles)
        number = mask.flatten().cumsum(0).view_as(mask) - 1  # of each labelled position
        best = best_children(logits, titles[labelled], number[row, step], token)
        right = torch.ones(*mask.shape, best.shape[1], dtype=torch.bool, device=best.device)
        right[labelled] = best
        return right.all(1)

    def _children(self, titles, vocabulary):
        """Which tokens the catalogue allows at each step of each row's own path: [B, T, V] bool."""
        allowed = torch.zeros(*titles.shape, vocabulary, dtype=torch.bool, device=titles.device)
        allowed[self.trie.along(titles)] = True
        return allowed


def best_children(logits, target, position, token):
    """Whether each target is what greedy decoding under the trie takes. Of equal logits it takes the lower token id.

    Args:
        logits: [n, G, V], at n positions.
        target: [n], token ids.
        position, token: [E], all children that the trie allows: which of the n, and the token id.

    Returns:
        [n, G] bool.
    """
    own = logits.gather(-1, target[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(-1)[position]  # [E, G]
    other = logits[position, :, token]
    beaten = (other > own) | ((other == own) & (token < target[position]).unsqueeze(-1))
    return torch.zeros_like(logits[..., 0]).index_add(0, position, beaten.to(logits.dtype)) == 0


def precise(logits):
    """At least float32, which sums over a vocabulary need."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
