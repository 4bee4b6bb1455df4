"""What the factors of a trained model do on test rows: how alike they are, where they look, and which of them the gate uses.

Paper: Factorized Latent Reasoning, arXiv 2604.26760, Figures 4 and 6 and the disentanglement score.

Shapes: R rows, K factors, D width, H places of a history, n items.
"""

import numpy as np
import torch

MOST_ROWS = 512  # rows on which the statistics are computed, evenly spaced over the test rows
BINS = 10  # of the distribution of a gate weight, from 0 to 1
MAPS = 3  # test rows whose attention maps are in result.json
EXAMPLES = 10  # test rows that a report shows in full


def evenly_spaced(rows, number):
    """At most `number` of the row numbers 0 to rows - 1, evenly spaced. [min(rows, number)] int64."""
    return np.unique(np.linspace(0, rows - 1, min(rows, number)).round().astype(np.int64))


@torch.no_grad()
def explain_rows(model, loader, numbers, device):
    """What the factors did on some rows.

    Args:
        model: a :class:`recbole_flr.contracts.Recommender`.
        loader: RecBole's loader of evaluated rows.
        numbers: [R] row numbers.
        device: of the model.

    Returns:
        alpha [R, K], attention [R, K, H + 1] (the items of the history, then all the rest) and vectors [R, K, D] as numpy arrays;
        vectors are None if the model has none; None for a model that cannot explain.
    """
    model.eval()
    found = []
    for part in np.array_split(numbers, -(-len(numbers) // 64)):
        interaction = loader._dataset.inter_feat[torch.from_numpy(part)].to(device)
        explained = model.explain(interaction)
        if explained is None:
            return None
        vectors = model.factor_vectors(interaction)
        found.append([*explained, vectors])
    alpha, attention, vectors = zip(*found)
    return tuple(None if each[0] is None else torch.cat(each).float().cpu().numpy() for each in (alpha, attention, vectors))


def correlations(vectors):
    """Pearson correlation between the vectors of two factors over their D channels, averaged over the rows.

    Args:
        vectors: [R, K, D].

    Returns:
        [K, K]; a factor without spread has correlation 0 with the others.
    """
    centred = vectors - vectors.mean(2, keepdims=True)
    length = np.linalg.norm(centred, axis=2, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    matrix = (unit @ unit.transpose(0, 2, 1)).mean(0)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def entropy(weights):
    """Entropy over the last axis, in nats."""
    return -(weights * np.log(np.maximum(weights, np.finfo(np.float64).tiny))).sum(-1)


def summarise(alpha, attention, vectors):
    """Statistics of the factors, as plain numbers for `result.json`.

    Args:
        alpha: [R, K] weights of the gate.
        attention: [R, K, H + 1], rows sum to 1.
        vectors: [R, K, D], or None.

    Returns:
        dict with

        - `rows`, `num_factors`.
        - `correlation` [K][K] and `mean_abs_correlation`, S_avg: the mean of its absolute values off the diagonal, 0 for K = 1
          (Figure 4). Both are None without vectors.
        - `max_attention`, A_max: the largest share of its attention that a factor gives to one item of the history, averaged over
          rows and factors.
        - `disentanglement`: (1 - S_avg) * A_max.
        - `gate`: `mean` [K]; `largest` [K], share of rows in which the factor has the largest weight; `histogram` [K][BINS],
          share of rows by weight; `entropy`, mean over rows in nats; `entropy_of_mean`, in nats.
    """
    alpha, attention = alpha.astype(np.float64), attention.astype(np.float64)
    number = alpha.shape[1]
    matrix = None if vectors is None else correlations(vectors.astype(np.float64))
    similarity = None
    if matrix is not None:
        similarity = float(np.abs(matrix[~np.eye(number, dtype=bool)]).mean()) if number > 1 else 0.0
    largest = float(attention[:, :, :-1].max(2).mean()) if attention.shape[2] > 1 else 0.0
    histogram = [np.histogram(column, BINS, (0, 1))[0] / len(alpha) for column in np.clip(alpha, 0, 1).T]
    return {
        "rows": len(alpha),
        "num_factors": number,
        "correlation": None if matrix is None else matrix.round(4).tolist(),
        "mean_abs_correlation": similarity,
        "max_attention": largest,
        "disentanglement": None if similarity is None else (1 - similarity) * largest,
        "gate": {
            "mean": alpha.mean(0).tolist(),
            "largest": (np.bincount(alpha.argmax(1), minlength=number) / len(alpha)).tolist(),
            "histogram": [each.round(4).tolist() for each in histogram],
            "entropy": float(entropy(alpha).mean()),
            "entropy_of_mean": float(entropy(alpha.mean(0))),
        },
    }


def factor_statistics(model, loader, device, shown=()):
    """:func:`summarise` on at most MOST_ROWS rows of a loader, and attention maps (Figure 6); None for a model without factors.

    Args:
        model: a :class:`recbole_flr.contracts.Recommender`.
        loader: RecBole's loader of the test rows.
        device: of the model.
        shown: from :func:`examples`. `maps` in the answer has the first MAPS of them: `user`, `history` (titles) and `attention`,
            [K][items of the history].
    """
    explained = explain_rows(model, loader, evenly_spaced(len(loader._dataset), MOST_ROWS), device)
    if explained is None:
        return None
    maps = [
        {
            "user": each["user"],
            "history": [item["title"] for item in each["history"]],
            "attention": [factor["attention"] for factor in each["factors"]],
        }
        for each in shown[:MAPS]
    ]
    return {**summarise(*explained), "maps": maps}


def examples(model, dataset, loader, ranks, titles, device):
    """Some test rows in full, for people: history, target, recommended items, and what the factors looked at.

    Args:
        model: of the run.
        dataset: RecBole's whole data set.
        loader: of the test rows.
        ranks: arrays of the test, as :meth:`recbole_flr.evaluation.RankCollector.take_ranks` gives them.
        titles: list of n titles; None if there are none, then the ids stand for them.
        device: of the model.

    Returns:
        list of dicts: `row`, `user`, `history` [{item, title}] oldest first, `target` {item, title}, `rank` of the target,
        `recommended` [{item, title}] best first, and for a model with factors `factors`: [{weight, attention: [share of each item
        of the history]}].
    """
    rows = loader._dataset.inter_feat
    numbers = evenly_spaced(len(rows), EXAMPLES)
    explained = explain_rows(model, loader, numbers, device)
    tokens = dataset.field2id_token[dataset.iid_field]

    def name(item):
        return {"item": str(tokens[item]), "title": str(tokens[item]) if titles is None else titles[item]}

    field = dataset.iid_field + dataset.config["LIST_SUFFIX"]
    found = []
    for place, number in enumerate(numbers.tolist()):
        history = [item for item in rows[field][number].tolist() if item]
        reached = np.isfinite(ranks["top_scores"][number])
        entry = {
            "row": number,
            "user": str(dataset.field2id_token[dataset.uid_field][rows[dataset.uid_field][number]]),
            "history": [name(item) for item in history],
            "target": name(int(ranks["target"][number])),
            "rank": int(ranks["item_rank"][number]),
            "recommended": [name(item) for item in ranks["top_items"][number][reached].tolist()],
        }
        if explained is not None:
            alpha, attention, _ = explained
            entry["factors"] = [
                {"weight": round(float(weight), 4), "attention": [round(float(share), 4) for share in shares]}
                for weight, shares in zip(alpha[place], attention[place][:, : len(history)])
            ]
        found.append(entry)
    return found
