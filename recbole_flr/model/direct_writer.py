"""Models that write the title right after the prompt: nothing stands between the two."""

from recbole_flr.model.reasoner import Thought
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
        return self.read_histories(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], prompt_only, leave_last=True)

    def think(self, context, reasoner=None):
        """There is no thought: the prompt's last token takes its place."""
        return Thought(context, context.unread)
