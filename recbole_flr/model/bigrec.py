"""BIGRec: A Bi-Step Grounding Paradigm for Large Language Models in Recommendation Systems (arXiv 2308.08434).

The prompt and the training are those of the other models that write titles, but there is no thought. The written text can be
grounded in the catalogue in two ways:

- `grounding: trie`: beams under the catalogue's trie, as the LatentR3 line of papers runs BIGRec.
- `grounding: embedding`, as in the original: the model writes a title freely. The items are ranked by the L2 distance between
  the last-token embedding of that text and those of their titles. Both come from the backbone as it was before tuning. (The
  original also weighs by popularity, which adds another signal and is left out.)

Shapes: B batch, L prompt tokens, T title tokens (with the end of title), D width, N titles of the catalogue.
"""

import copy

import torch
from torch import nn
from transformers import GenerationConfig

from recbole_flr.decoding import Beams, item_scores
from recbole_flr.model.direct_writer import DirectWriter
from recbole_flr.model.reasoner import read_prompt
from recbole_flr.training.supervised import Supervised
from recbole_flr.training.warmup import WarmUp


class SupervisedBIGRec(Supervised):
    """The supervised stage. It begins by keeping a copy of the backbone as it is before tuning."""

    def begin(self):
        self.model.keep_untuned()


class BIGRec(DirectWriter):
    """The language model writes the title right after the prompt.

    With ``grounding: embedding`` the model holds two backbones: `backbone`, which is trained, and `untuned`. For a pretrained
    backbone, `untuned` is the one that was loaded. The compact backbone starts from random weights, so there `untuned` is the
    backbone after warm-up.

    Args:
        config: see `properties/model/BIGRec.yaml`.
        dataset: RecBole training dataset.
    """

    stages = (WarmUp, SupervisedBIGRec)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.grounding, self.rows_at_once = config["grounding"], config["eval_batch_size"]
        if self.grounding == "embedding":
            beams = config["grounding_beams"]
            # replaced, not only passed: what a given configuration leaves open is taken from the LM's own (its penalties)
            self.backbone.lm.generation_config = GenerationConfig(
                num_beams=beams, do_sample=False, max_new_tokens=config["max_title_tokens"] + sum(map(len, self.marks)) + 1,
                length_penalty=self.length_penalty if beams > 1 else None,
                eos_token_id=self.backbone.end_id, pad_token_id=self.backbone.pad_id,
            )
            self.untuned = copy.deepcopy(self.backbone).requires_grad_(False).eval()
            self.register_buffer("title_embeddings", None, persistent=False)  # [N, D], made when first needed
            self.untuned.register_load_state_dict_post_hook(self._forget)
            if self.backbone.pretrained:  # tied embeddings have two names
                named = self.named_parameters(remove_duplicate=False)
                self.unsaved_parameters |= {name for name, _ in named if name.startswith("untuned.")}

    @staticmethod
    def ranks_under_trie(config):
        """``grounding: embedding`` ranks all items by distance."""
        return config["grounding"] == "trie"

    # grounding: embedding

    def write(self, prompts):
        """The titles that beam search without a trie finds best.

        Args:
            prompts: B Prompts, padded on the left.

        Returns:
            [B, T] token ids; what follows a title's end means nothing. T is at most max_title_tokens + 1, and the marks around a title.
        """
        lm = self.backbone.lm
        ids = lm.generate(prompts.ids, attention_mask=prompts.mask.long(), generation_config=lm.generation_config)
        return ids[:, prompts.ids.shape[1]:]

    @torch.no_grad()
    def embed_titles(self, ids):
        """States of titles' last tokens after the untuned backbone's last layer.

        The backbone reads its start token, if it has one, and the title without its end; the end if that is nothing.

        Args:
            ids: [B, T] token ids, T >= 1; a title goes up to its first end of title, or else to T.

        Returns:
            [B, D] float32 or float64.
        """
        mask = (ids == self.backbone.end_id).cumsum(1) == 0
        if self.backbone.start_id is not None:  # it may well be the end token, so that it is put in front after the cut
            ids, mask = nn.functional.pad(ids, (1, 0), value=self.backbone.start_id), nn.functional.pad(mask, (1, 0))
        mask[:, 0] = True
        context = read_prompt(self.untuned, self.untuned.embed(ids), mask, use_cache=False)
        last = context.hidden[torch.arange(len(ids), device=ids.device), context.length - 1]
        return last.to(torch.promote_types(last.dtype, torch.float32))

    def _catalogue(self):
        """The trie's leaves [N] and their titles' embeddings [N, D]."""
        start = self.trie.item_start.long()
        leaves = (start.diff() > 0).nonzero().squeeze(1)
        if self.title_embeddings is None:
            items = self.trie.items[start[leaves]].long()
            order = self.collator.titles.start.diff()[items].argsort()  # equal lengths together: little padding
            parts = [self.embed_titles(self.collator.targets(items[rows])[0]) for rows in order.split(self.rows_at_once)]
            self.title_embeddings = torch.cat(parts)[order.argsort()]
        return leaves, self.title_embeddings

    def _forget(self, *_):
        """Drop what was computed from the untuned backbone, whose weights have changed."""
        self.title_embeddings = None

    def keep_untuned(self):
        """Copy the compact backbone as it is now: it counts as untuned. A pretrained one was copied when it was loaded."""
        if self.grounding == "embedding" and not self.backbone.pretrained:
            self.untuned.load_state_dict(self.backbone.state_dict())

    def train(self, mode=True):
        """As every module's, except that the untuned backbone stays without dropout."""
        super().train(mode)
        if self.grounding == "embedding":
            self.untuned.eval()
        return self

    # RecBole's interface

    def full_sort_predict(self, interaction, top=None):
        """Scores of the whole catalogue: [B, n_items]; with ``grounding: embedding`` minus the distance, all finite but
        that of item 0, whatever `top` is."""
        if self.grounding == "trie":
            return super().full_sort_predict(interaction, top)
        written = self.write(self._prompts(interaction))
        leaves, embeddings = self._catalogue()
        # the faster way by inner products would lose the small distances, which are the ones that count
        distance = torch.cdist(self.embed_titles(written), embeddings, compute_mode="donot_use_mm_for_euclid_dist")
        scores, order = (-distance).sort(dim=1, descending=True, stable=True)
        return item_scores(Beams(leaves[order], scores), self.trie, self.n_items)

    def predict(self, interaction):
        """Score of each row's item: its log-probability, or with ``grounding: embedding`` minus the distance. [B]."""
        if self.grounding == "trie":
            return super().predict(interaction)
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)
