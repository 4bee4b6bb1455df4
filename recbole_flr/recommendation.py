"""Recommend the next items for a history, and say what the model looked at."""

import difflib

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_flr.data.catalog import Catalog
from recbole_flr.errors import ConfigError, DataError
from recbole_flr.quick_start import load_data_and_model


def resolve_items(dataset, catalog, history):
    """Titles or item ids -> internal item ids. A text that is both counts as an id; a title of several items stands for the most
    popular one.

    Raises:
        DataError: for an unknown entry; it names the nearest title.
    """
    by_token = dataset.field2token_id[dataset.iid_field]
    items = []
    for entry in history:
        item = by_token.get(str(entry)) or catalog.item_of.get(str(entry))
        if not item:
            near = difflib.get_close_matches(str(entry), catalog.titles[1:], n=1, cutoff=0.0)
            raise DataError(f"history: found {entry!r}, which is neither an item id nor a title of the catalogue; "
                            f"the nearest title is {near[0]!r}")
        items.append(item)
    return items


def _read_catalog(config, dataset):
    """The titles of the data set; a model of ids also works where there are none, and the ids stand for them."""
    try:
        return Catalog.from_dataset(config, dataset)
    except DataError:
        return Catalog([str(token) for token in dataset.field2id_token[dataset.iid_field]])


def prepare(config, model, train_data):
    """Let a model read histories and name items.

    Raises:
        ConfigError: if the model reads no histories.
    """
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        raise ConfigError(f"recommend: found a {config['model']}, expected a sequential model, which reads a history")
    if model.catalog is None:
        model.catalog = _read_catalog(config, train_data._dataset)


def check_count(model, k):
    """Make sure that a model can rank k items.

    Raises:
        ConfigError: otherwise.
    """
    most = min(len(model.catalog) - 1, model.most_items() or len(model.catalog))
    if not 1 <= k <= most:
        raise ConfigError(f"k: found {k}, expected 1 to {most} (num_beams and the catalogue bound it)")


def history_batch(config, model, histories, users=None):
    """Histories -> RecBole's batch. The latest MAX_ITEM_LIST_LENGTH items of each count.

    Args:
        config: of the run.
        model: of the run.
        histories: list of B lists of item ids, none of them empty.
        users: [B] user ids; None for users that the data set does not have.

    Returns:
        RecBole's Interaction, on the CPU.
    """
    most, size = config["MAX_ITEM_LIST_LENGTH"], len(histories)
    items = np.zeros((size, most), dtype=np.int64)
    lengths = np.array([min(len(history), most) for history in histories], dtype=np.int64)
    for row, (history, length) in enumerate(zip(histories, lengths)):
        items[row, :length] = history[-length:]
    users = torch.zeros(size, dtype=torch.long) if users is None else torch.as_tensor(users, dtype=torch.long)
    return Interaction({
        model.ITEM_SEQ: torch.from_numpy(items), model.ITEM_SEQ_LEN: torch.from_numpy(lengths),
        model.USER_ID: users, model.ITEM_ID: torch.zeros(size, dtype=torch.long),
    })


@torch.no_grad()
def recommend(checkpoint, history, k=10, config_dict=None):
    """Recommend the next items, and say what the model looked at.

    Args:
        checkpoint: folder of a run, or what :func:`load_data_and_model` returned (to load once and ask often).
        history: titles or item ids, oldest first; the latest MAX_ITEM_LIST_LENGTH count.
        k: how many items. A model that writes titles with beams reaches at most as many as there are beams.
        config_dict: options to change when loading.

    Returns:
        dict with ``items``: [{item, title, score}], best first, where score is the title's log-probability (models that write no
        title: their score), and ``factors``: [{weight, history: [{item, title, attention}]}], one for each factor of the last
        refinement (empty for models without a thought). If the model can say where a score comes from (FLRMix), an item also has
        ``parts``: {name: summand of the score}, and ``after``: [{item, title, share}], the items of the history near which it stood
        in the training rows. If the model writes its reasoning (CoT), the answer also has ``thought``, a text.

    Raises:
        DataError: for an empty history or an unknown item.
        ConfigError: if k is below 1, or more than there are beams or items.
    """
    loaded = checkpoint if isinstance(checkpoint, tuple) else load_data_and_model(checkpoint, config_dict)
    config, model, dataset, train_data = loaded[:4]
    prepare(config, model, train_data)
    catalog = model.catalog
    check_count(model, k)
    if not history:
        raise DataError("history: found none, expected at least one title or item id")
    items = resolve_items(dataset, catalog, history)[-config["MAX_ITEM_LIST_LENGTH"]:]
    interaction = history_batch(config, model, [items]).to(config["device"])
    with model.kept_texts() as texts:
        scores = model.best_scores(interaction, k)[0].cpu()
    scores[0] = -torch.inf
    best = scores.topk(k)

    def name(item):
        return {"item": str(dataset.field2id_token[dataset.iid_field][item]), "title": catalog.titles[item]}

    answer = {"items": [{**name(item), "score": score} for item, score in
                        zip(best.indices.tolist(), best.values.tolist()) if score > -torch.inf], "factors": []}
    if texts:
        answer["thought"] = texts[0]["thought"]
    sources = model.explain_items(interaction, best.indices.tolist()[:len(answer["items"])])
    for entry, source in zip(answer["items"], sources or []):
        entry["parts"] = source["parts"]
        if "voters" in source:
            after = [{**name(item), "share": float(share)} for item, share in zip(items, source["voters"]) if share > 0]
            entry["after"] = sorted(after, key=lambda each: -each["share"])
    explained = model.explain(interaction)
    if explained is not None:
        alpha, attention = explained
        for weight, shares in zip(alpha[0].tolist(), attention[0].tolist()):
            looked = [{**name(item), "attention": share} for item, share in zip(items, shares)]
            answer["factors"].append({"weight": weight, "history": sorted(looked, key=lambda e: -e["attention"])})
    return answer
