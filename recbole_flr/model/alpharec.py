"""AlphaRec: Language Representations Can be What Recommenders Need (Sheng et al., ICLR 2025, arXiv 2407.05441), for RecBole.

There are no ids. A frozen language model gives each title a vector, a two-layer MLP maps it, and two LightGCN layers spread it
over the graph of training users and items. A user is compared with items by the cosine.

Departures from the paper:

- A user of the sequential protocol is a history, who may have no training row. He is a node of his own, whose neighbours are the
  items of the history. His text vector is the mean of theirs, as the paper has it for its users.
- The text vectors come from a small sentence encoder (`item_text: all-MiniLM-L6-v2`), or are the mean hidden state of any
  language model. The paper takes those of a large embedding model.
- The paper leaves the items of a user's training rows out of his ranking. The sequential protocol allows repeats, so items of the
  history stay in it, with their cosine lowered by `repeat_penalty`. At 2, the default, they come behind all other items.
- A drawn negative that is the target or stands in the history does not count.

Shapes: B rows, L places of a history (right-padded with item 0), U training users, n items, T text width, D width, N negatives.
"""

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn

from recbole_flr.contracts import ByFullRanking, Recommender
from recbole_flr.data.catalog import Catalog
from recbole_flr.errors import CheckpointError
from recbole_flr.model.counted import OnTrainingRows, TrainingRows
from recbole_flr.model.remembered import Remembered
from recbole_flr.model.text_vectors import check_probe, probe, title_vectors
from recbole_flr.store import fingerprint


class TextGraph(nn.Module):
    """Graph of training users and items, to whose nodes frozen text vectors belong.

    Args:
        rows: :class:`recbole_flr.model.counted.TrainingRows`.
        text: [n, T] float32, the vectors of the items; 0 for item 0.
        layers: number of LightGCN layers.
    """

    def __init__(self, rows, text, layers):
        super().__init__()
        places = rows.histories != 0
        users = np.concatenate([np.broadcast_to(rows.users[:, None], places.shape)[places], rows.users])
        items = np.concatenate([rows.histories[places], rows.targets])
        pairs = np.unique(np.stack([users, items]), axis=1)
        user, item = np.unique(pairs[0], return_inverse=True)[1], pairs[1]
        of_user, of_item = np.bincount(user), np.bincount(item, minlength=len(text))
        self.layers, self.users = layers, len(of_user)
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("degree", torch.from_numpy(of_item).float(), persistent=False)
        shape = (self.users, len(text))
        places = torch.from_numpy(np.stack([user, item]))

        def matrix(values):
            values = torch.from_numpy(values).float()
            return torch.sparse_coo_tensor(places, values, shape, check_invariants=True).coalesce()

        self.register_buffer("user_text", matrix(1 / of_user[user]) @ text, persistent=False)  # [U, T]
        self.register_buffer("to_users", matrix(1 / np.sqrt(of_user[user] * of_item[item])), persistent=False)
        self.register_buffer("to_items", self.to_users.t().coalesce(), persistent=False)

    def item_layers(self, mlp):
        """The items' vectors after 0, 1, ..., `layers` layers: [layers + 1, n, D]."""
        users, items = mlp(self.user_text), mlp(self.text)
        found = [items]
        for _ in range(self.layers):
            users, items = torch.sparse.mm(self.to_users, items), torch.sparse.mm(self.to_items, users)
            found.append(items)
        return torch.stack(found)

    def user_vectors(self, mlp, items, histories):
        """Vectors of users who are not in the graph: the mean over the layers of a node whose neighbours are the history.

        Args:
            mlp: module [..., T] -> [..., D].
            items: [layers + 1, n, D], from :meth:`item_layers`.
            histories: [B, L] item ids. An item that stands twice is one neighbour.

        Returns:
            [B, D].
        """
        ordered = histories.sort(dim=1).values
        first = (ordered != 0) & (ordered != nn.functional.pad(ordered[:, :-1], (1, 0)))
        count = first.sum(1, keepdim=True).clamp_min(1)
        own = mlp((first.unsqueeze(2) * self.text[ordered]).sum(1) / count)
        weight = first / (count * self.degree[ordered].clamp_min(1)).sqrt()
        near = items[:-1].sum(0)[ordered]  # the sum over the layers below, of each neighbour
        return (own + (weight.unsqueeze(2) * near).sum(1)) / len(items)


class AlphaRec(OnTrainingRows, ByFullRanking, SequentialRecommender, Recommender):
    """Text vectors, a two-layer MLP and LightGCN, trained with InfoNCE on the cosine.

    Args:
        config: see `properties/model/AlphaRec.yaml`.
        dataset: RecBole training dataset. Its rows are the graph.

    Raises:
        DataError: if the data set has no titles.
        ConfigError: for an encoder that cannot be loaded.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        rows = TrainingRows.of(dataset, self.ITEM_SEQ)
        self.remember_rows(rows)
        self.catalog = Catalog.from_dataset(config, dataset)
        text = title_vectors(config, self.catalog.titles, config["item_text"])
        self.graph = TextGraph(rows, text, config["n_layers"])
        hidden = config["mlp_hidden_size"]
        self.mlp = nn.Sequential(nn.Linear(text.shape[1], hidden), nn.LeakyReLU(), nn.Linear(hidden, config["embedding_size"]))
        self.temperature, self.num_negatives = config["temperature"], config["num_negatives"]
        self.repeat_penalty = config["repeat_penalty"]
        self._remembered = Remembered()

    def other_parameter(self):
        """What a checkpoint keeps beside the weights."""
        return {**super().other_parameter(), "titles": fingerprint(self.catalog.titles), "text_probe": probe(self.graph.text)}

    def load_other_parameter(self, para):
        """Compare training rows, titles and text vectors with those of a checkpoint.

        Raises:
            CheckpointError: if they differ.
        """
        if para and "titles" in para:
            if para["titles"] != fingerprint(self.catalog.titles):
                raise CheckpointError("the titles of the data set are not those that the run was trained on; put them back, or "
                                      "train anew")
            check_probe(para["text_probe"], probe(self.graph.text))
        super().load_other_parameter(para)

    def vectors(self, histories):
        """Users [B, D] and items [n, D], of length 1.

        Args:
            histories: [B, L] item ids.
        """
        items = self._remembered.of([*self.mlp.parameters(), self.graph.text], lambda: self.graph.item_layers(self.mlp))
        users = self.graph.user_vectors(self.mlp, items, histories)
        return nn.functional.normalize(users, dim=-1), nn.functional.normalize(items.mean(0), dim=-1)

    def calculate_loss(self, interaction):
        """InfoNCE: -log of exp(cos(u, y) / t) over the sum for the target y and the drawn negatives. A scalar."""
        histories, target = interaction[self.ITEM_SEQ], interaction[self.POS_ITEM_ID]
        negatives = torch.randint(1, self.n_items, (len(target), self.num_negatives), device=target.device)
        return info_nce(*self.vectors(histories), histories, target, negatives, self.temperature)

    def full_sort_predict(self, interaction):
        """Cosines with all items, those of the history lowered by the penalty: [B, n]."""
        history = interaction[self.ITEM_SEQ]
        users, items = self.vectors(history)
        scores = users @ items.T
        return scores.scatter(1, history, scores.gather(1, history) - self.repeat_penalty)


def info_nce(users, items, histories, target, negatives, temperature):
    """Mean InfoNCE loss.

    Args:
        users: [B, D], items: [n, D], both of length 1.
        histories: [B, L] item ids.
        target: [B] item ids.
        negatives: [B, N] item ids. Those that are the target or in the history do not count.
        temperature: > 0.

    Returns:
        scalar.
    """
    own = torch.cat([histories, target.unsqueeze(1)], dim=1)
    positive = (users * items[target]).sum(-1, keepdim=True)
    negative = torch.einsum("bd,bnd->bn", users, items[negatives])
    excluded = (negatives.unsqueeze(2) == own.unsqueeze(1)).any(2)
    logits = torch.cat([positive, negative.masked_fill(excluded, -torch.inf)], dim=1) / temperature
    return nn.functional.cross_entropy(logits, torch.zeros_like(target))
