"""Recommend the next items for a history, and say what the model looked at."""

import re
from collections import Counter
from contextlib import nullcontext
from difflib import SequenceMatcher
from math import log

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_flr.data.catalog import Catalog
from recbole_flr.errors import ConfigError, DataError
from recbole_flr.quick_start import load_data_and_model


def resolve_items(dataset, catalog, history, unknown=None):
    """Titles or item ids -> internal item ids. A text that is both counts as an id; a title of several items stands for the most
    popular one.

    Args:
        dataset, catalog: of the model.
        history: titles or item ids.
        unknown: a list that gets the unknown entries, which then have the ids n_items, n_items + 1, ...; None refuses them.

    Raises:
        DataError: for an unknown entry; it names the nearest titles.
    """
    by_token = dataset.field2token_id[dataset.iid_field]
    items = []
    for entry in history:
        if not str(entry).strip():
            raise DataError("history: found an empty entry; expected item ids or titles")
        item = by_token.get(str(entry)) or catalog.item_of.get(str(entry))
        if not item and unknown is not None:
            unknown.append(str(entry))
            item = len(catalog) + len(unknown) - 1
        if not item:
            near = ", ".join(map(repr, nearest_titles(str(entry), catalog.titles[1:])))
            raise DataError(f"history: found {str(entry)!r}, which is neither an item id nor a title of the catalogue; the "
                            f"nearest titles are {near}. FLR and other models that read titles and no ids can read it as text: "
                            "--as-text")
        items.append(item)
    return items


def nearest_titles(text, titles, count=3):
    """The distinct titles that are most like a text: those that share words with it, rare words first; then by letters.

    Args:
        text (str): any text.
        titles: list of str.
        count: how many are wanted.
    """
    titles = list(dict.fromkeys(titles))
    words_of = [_words(title) for title in titles]
    known = Counter(word for words in words_of for word in words)
    wanted = _words(text)
    for word in wanted - known.keys():  # a mistyped word stands for the word that looks like it
        alike = max(known, key=lambda other: SequenceMatcher(None, word, other).ratio(), default=word)
        if SequenceMatcher(None, word, alike).ratio() > 0.75:
            wanted = wanted - {word} | {alike}
    rarity = {word: log(1 + len(titles) / known[word]) for word in known}

    def shared(words):  # weight of the shared words, divided by that of all words of both
        total = sum(rarity.get(word, log(1 + len(titles))) for word in words | wanted)
        return sum(rarity[word] for word in words & wanted) / total if total else 0.0

    scores = [shared(words) for words in words_of]
    best = sorted(range(len(titles)), key=lambda place: -scores[place])[:20 * count]
    folded = text.casefold()
    likeness = {place: SequenceMatcher(None, folded, titles[place].casefold()).ratio() for place in best}
    if not any(scores):  # no word is shared
        likeness = {place: SequenceMatcher(None, folded, title.casefold()).quick_ratio() for place, title in enumerate(titles)}
    return [titles[place] for place in sorted(likeness, key=lambda place: (-scores[place], -likeness[place]))[:count]]


def _words(text):
    return set(re.findall(r"\w+", text.casefold()))


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
def recommend(checkpoint, history, k=10, config_dict=None, as_text=False):
    """Recommend the next items, and say what the model looked at.

    Args:
        checkpoint: folder of a run, or what :func:`load_data_and_model` returned (to load once and ask often).
        history: titles or item ids, oldest first; the latest MAX_ITEM_LIST_LENGTH count.
        k: how many items. A model that writes titles with beams reaches at most as many as there are beams.
        config_dict: options to change when loading.
        as_text: whether an entry that is neither an item id nor a title is read as text, by a model that reads titles. Otherwise
            it is refused.

    Returns:
        dict with ``items``: [{item, title, score}], best first, where score is the title's log-probability (models that write no
        title: their score), and ``factors``: [{weight, history: [{item, title, attention}], rest}], one for each factor of the
        last refinement (empty for models that do not say what they looked at, such as SASRec and LARES). The weights add up to 1.
        So do the attentions of a factor and its ``rest``, which is what it attended to besides the items: the thought itself, and
        the text around the titles. If the model can say where a score comes from (FLRMix), an item also has
        ``parts``: {name: summand of the score}, and ``after``: [{item, title, share}], the items of the history near which it stood
        in the training rows. If the model writes its reasoning (CoT), the answer also has ``thought``, a text.

    Raises:
        DataError: for an empty history or an unknown item.
        ConfigError: if k is below 1, or more than there are beams or items; or as_text is asked of a model that reads no text.
    """
    loaded = checkpoint if isinstance(checkpoint, tuple) else load_data_and_model(checkpoint, config_dict)
    config, model, dataset, train_data = loaded[:4]
    prepare(config, model, train_data)
    catalog = model.catalog
    check_count(model, k)
    if not history:
        raise DataError("history: found none, expected at least one title or item id")
    unknown = []
    items = resolve_items(dataset, catalog, history, unknown if as_text else None)[-config["MAX_ITEM_LIST_LENGTH"]:]
    with model.reading(unknown) if unknown else nullcontext():
        return _answer(config, model, dataset, catalog, items, unknown, k)


def _answer(config, model, dataset, catalog, items, unknown, k):
    """The dict of :func:`recommend`, for item ids; those from n_items on stand for the texts in `unknown`."""
    interaction = history_batch(config, model, [items]).to(config["device"])
    with model.kept_texts() as texts:
        scores = model.best_scores(interaction, k)[0].cpu()
    scores[0] = -torch.inf
    best = scores.topk(k)

    def name(item):
        if item >= len(catalog):
            return {"item": None, "title": unknown[item - len(catalog)]}
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
            answer["factors"].append({
                "weight": weight, "history": sorted(looked, key=lambda e: -e["attention"]), "rest": sum(shares[len(items):]),
            })
    return answer
