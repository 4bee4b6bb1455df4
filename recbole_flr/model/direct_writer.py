"""Models that write the title right after the prompt: nothing stands between the two."""

from recbole_flr.model.reasoner import Thought, read_prompt
from recbole_flr.model.writer import Writer


class DirectWriter(Writer):
    """A writer without a thought.

    Args:
        config: see `properties/generative.yaml`.
        dataset: RecBole training dataset.
    """

    weights_depend_on_item_ids = False  # it reads and writes titles

    def read_context(self, interaction, prompt_only=False):
        """Read all of the prompt but its last token, which goes right before the title."""
        prompts = self._prompts(interaction)
        embeddings = self.backbone.embed(prompts.ids)  # the padding is not on the right
        use_cache = prompt_only or self.use_cache or not self.training
        context = read_prompt(self.backbone, embeddings[:, :-1], prompts.mask[:, :-1], use_cache, shared=prompts.shared)
        context.item, context.unread = prompts.item[:, :-1], embeddings[:, -1]
        return context

    def think(self, context, reasoner=None):
        """There is no thought: the prompt's last token takes its place."""
        return Thought(context, context.unread)
