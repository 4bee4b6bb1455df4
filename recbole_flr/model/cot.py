"""CoT: a pretrained language model that first writes its reasoning, then the title (the row CoT of Table 2 of FLR,
arXiv 2604.26760).

Zero-shot chain of thought (Kojima et al., arXiv 2205.11916) in two steps: the prompt asks for reasoning, and the model writes it
freely, token by token. Then the heading of the answer is appended, and titles are ranked behind it under the trie, as in `Base`.
There is no training.

Departures: the papers do not give the wording of the prompt. The reasoning is greedy by default, so that a run can be repeated.
Its number of tokens is bounded.

The prompt is read once. The reasoning and the heading are appended to its cache.

Shapes: B batch, L prompt tokens, S tokens of the longest reasoning, D width, V vocabulary.
"""

from contextlib import contextmanager

import torch

from recbole_flr.data.prompt import Template
from recbole_flr.errors import ConfigError
from recbole_flr.model.backbone import growing
from recbole_flr.model.base import Base
from recbole_flr.model.reasoner import Context, read_prompt

TASK = ("first describe in a few sentences what this user likes and what would fit next, "
        "then recommend the next {noun} to the user.")
REASONING = "\n### Reasoning:\n"
RESPONSE = "\n\n### Response:\n"
HEADING = "###"  # a reasoning ends where the model begins a heading of its own


class CoT(Base):
    """A pretrained language model that writes its reasoning before the title.

    Args:
        config: see `properties/model/CoT.yaml`.
        dataset: RecBole training dataset.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.max_thought_tokens, self.temperature = config["max_thought_tokens"], config["thought_temperature"]
        backbone = self.backbone
        response, = backbone.encode([RESPONSE])
        self.register_buffer("response", torch.tensor(response), persistent=False)
        # tokens that end the reasoning: the end of text, and each token with a heading in it
        ends = {backbone.end_id, *(number for token, number in backbone.tokenizer.get_vocab().items() if HEADING in token)}
        self.register_buffer("ends", torch.tensor(sorted(ends)), persistent=False)
        self.register_buffer("no_words", torch.tensor([backbone.thought_id]), persistent=False)
        self.generator = torch.Generator(self.device).manual_seed(config["seed"])
        self._texts = None
        self._users, self._items = (dataset.field2id_token[field] for field in (self.USER_ID, self.ITEM_ID))

    @staticmethod
    def template(name, noun):
        """The paper's prompt, except that it asks for the reasoning first.

        Raises:
            ConfigError: for another prompt, which has no instruction.
        """
        if name != "paper":
            raise ConfigError(f"prompt: found {name}, expected paper or null: CoT needs an instruction to write its reasoning")
        return Template.named(name, noun, TASK, REASONING)

    @torch.no_grad()
    def read_context(self, interaction, prompt_only=False):
        """Read the prompts, write the reasoning behind them, and read the heading of the response but its last token.

        No gradient passes through it.
        """
        prompts = self._prompts(interaction)
        context = read_prompt(self.backbone, self.backbone.embed(prompts.ids), prompts.mask, shared=prompts.shared)
        context.item = prompts.item
        cache = growing(context.cache, self.max_thought_tokens + len(self.response))
        tokens, written = self.write_thoughts(context, cache)
        if self._texts is not None:
            self._keep(interaction, tokens, written)
        heading = self.response.expand(len(tokens), -1)
        return self._behind(context, cache, tokens, written, heading)

    def write_thoughts(self, context, cache):
        """Write the reasoning token by token.

        Args:
            context: of B prompts, padded on the left.
            cache: a growing copy of its cache, to which the tokens are appended.

        Returns:
            token ids [B, S], and which of them are real [B, S]: those before the first end. S is at most max_thought_tokens.
        """
        state, position, mask = context.hidden[:, -1], context.length, context.mask
        writing = torch.ones_like(position, dtype=torch.bool)
        tokens, written = [], []
        for _ in range(self.max_thought_tokens):
            token = self._choose(self.backbone.logits(state))
            writing = writing & ~torch.isin(token, self.ends)
            if not writing.any():
                break
            tokens.append(torch.where(writing, token, self.backbone.pad_id))
            written.append(writing)
            mask = torch.cat([mask, writing.unsqueeze(1)], dim=1)
            embedding = self.backbone.embed(tokens[-1]).unsqueeze(1)
            state = self.backbone(embedding, mask, position.unsqueeze(1), cache)[0][:, 0]
            position = position + writing
        if not tokens:
            return context.mask.new_zeros(len(mask), 0, dtype=torch.long), context.mask.new_zeros(len(mask), 0)
        return torch.stack(tokens, dim=1), torch.stack(written, dim=1)

    def _choose(self, logits):
        """The next token of each row: [B, V] -> [B]. <|Thought|> is no token of the language."""
        logits = logits.float().index_fill(1, self.no_words, -torch.inf)
        if not self.temperature:
            return logits.argmax(-1)
        probabilities = (logits / self.temperature).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=self.generator).squeeze(1)

    def _behind(self, context, cache, tokens, written, heading):
        """The context of prompt, reasoning and heading [B, H]; the heading's last token is left unread."""
        read = heading[:, :-1]
        embeddings = self.backbone.embed(heading)
        mask = torch.cat([context.mask, written, torch.ones_like(read, dtype=torch.bool)], dim=1)
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
        hidden = embeddings[:, :0]
        if read.shape[1]:
            hidden = self.backbone(embeddings[:, :-1], mask, positions[:, -read.shape[1]:], cache)[0]
        blank = hidden.new_zeros(*tokens.shape, hidden.shape[2])  # states of the reasoning, which nothing reads again
        item = torch.nn.functional.pad(context.item, (0, tokens.shape[1] + read.shape[1]), value=-1)
        return Context(
            torch.cat([context.hidden, blank, hidden], dim=1), mask, positions, mask.sum(-1),
            tuple((layer.keys, layer.values) for layer in cache.layers),
            torch.cat([context.embeddings, self.backbone.embed(tokens), embeddings[:, :-1]], dim=1), item,
            unread=embeddings[:, -1],
        )

    # the texts

    @contextmanager
    def kept_texts(self):
        """See :meth:`recbole_flr.contracts.Recommender.kept_texts`. The texts are the reasoning of each row."""
        self._texts = []
        try:
            yield self._texts
        finally:
            self._texts = None

    def _keep(self, interaction, tokens, written):
        ids = [row[real].tolist() for row, real in zip(tokens.cpu(), written.cpu())]
        texts = self.backbone.tokenizer.batch_decode(ids)
        history = interaction[self.ITEM_SEQ].tolist()
        for text, user, items, row in zip(texts, interaction[self.USER_ID].tolist(), history, ids):
            self._texts.append({
                "user": str(self._users[user]), "history": [str(self._items[item]) if item < self.n_items else None for item in items if item],
                "thought": text.strip(), "tokens": len(row),
            })
