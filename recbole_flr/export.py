"""A trained model for other programs: item vectors, ids, titles, and the language model as a folder of Hugging Face.

docs/serving.md says how to search the vectors with FAISS.
"""

from pathlib import Path

import numpy as np
import torch

from recbole_flr.errors import CheckpointError, ConfigError, DiskError, first_line
from recbole_flr.files import new_folder, write_json
from recbole_flr.quick_start import load_data_and_model
from recbole_flr.recommendation import history_batch, prepare, resolve_items
from recbole_flr.result import versions
from recbole_flr.training.checkpoint import run_folder

ABOUT, VECTORS, IDS, TITLES, BACKBONE = "export.json", "item_vectors.npy", "item_ids.json", "item_titles.json", "backbone"


def export(checkpoint, out, config_dict=None):
    """Write what other programs can use of a trained model.

    Args:
        checkpoint: folder of a run.
        out: folder to write; it is new, empty, or holds an earlier export, which is replaced.
        config_dict: options to change when loading.

    Returns:
        dict: name of a file or folder in `out` -> what it is.

    Raises:
        ConfigError: if the model has neither item vectors nor a language model, or the folder holds other files.
        CheckpointError: if the files cannot be written.
    """
    shown, out = out, Path(out).resolve()
    if out.exists() and not (out.is_dir() and ((out / ABOUT).is_file() or not any(out.iterdir()))):
        raise ConfigError(f"out: found {shown}, which is no earlier export; expected a new folder")
    loaded = load_data_and_model(checkpoint, config_dict)
    config, model, dataset = loaded[:3]
    prepare(config, model, loaded[3])
    vectors, language_model = item_vectors(config, model), model.language_model()
    if vectors is None and language_model is None:
        raise ConfigError(f"export: {config['model']} has neither item vectors nor a language model: there is nothing to export")
    written = {
        IDS: f"list of {len(model.catalog) - 1} item ids" + (", in the order of the vectors" if vectors is not None else ""),
        TITLES: "list of the titles of these items",
        ABOUT: "model, data set, versions, and the weights of the ranking",
    }
    try:
        with new_folder(out, ABOUT) as temporary:
            if vectors is not None:
                np.save(temporary / VECTORS, vectors)
                written = {VECTORS: f"{vectors.shape[0]} item vectors of {vectors.shape[1]} numbers, float32", **written}
            tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
            write_json(temporary / IDS, tokens[1:])
            write_json(temporary / TITLES, model.catalog.titles[1:])
            if language_model is not None:
                language_model.export(temporary / BACKBONE)
                written[BACKBONE] = "the language model and its tokenizer; transformers loads this folder"
            write_json(temporary / ABOUT, {
                "model": config["model"], "dataset": config["dataset"], "run": run_folder(checkpoint).name, "versions": versions(),
                "ranking_weights": model.other_parameter().get("weights", {}), "max_history": config["MAX_ITEM_LIST_LENGTH"],
            })
    except (OSError, DiskError) as error:
        raise CheckpointError(f"out: cannot write {shown} ({first_line(error)})") from error
    return written


@torch.no_grad()
def item_vectors(config, model):
    """Vectors of the items, without the padding: [n, D] float32; None if the model has none.

    They are those of :meth:`recbole_flr.contracts.Recommender.retrieval`, or RecBole's `item_embedding`, which a model of RecBole
    multiplies with the state of a user.
    """
    found = model.retrieval(history_batch(config, model, [[1]]).to(config["device"]))
    vectors = found[2] if found else dict(model.named_modules()).get("item_embedding")
    if vectors is None:
        return None
    vectors = vectors.weight if isinstance(vectors, torch.nn.Embedding) else vectors
    return vectors[1:len(model.catalog)].float().cpu().numpy()  # BERT4Rec has a last row for its mask


@torch.no_grad()
def query_vectors(loaded, history):
    """The queries of a user, for a search among the item vectors.

    Args:
        loaded: what :func:`recbole_flr.quick_start.load_data_and_model` returned.
        history: titles or item ids, oldest first.

    Returns:
        queries [K, D] and the logarithm of their weights [K], float32 numpy arrays. The model's log-probability of item i is
        log of the sum over k of weight_k * softmax over the items of (query_k . vector_i).

    Raises:
        DataError: for an unknown item.
        ConfigError: if the model does not rank by such products.
    """
    config, model, dataset = loaded[:3]
    prepare(config, model, loaded[3])
    items = resolve_items(dataset, model.catalog, history)
    found = model.retrieval(history_batch(config, model, [items]).to(config["device"]))
    if found is None:
        raise ConfigError(f"query_vectors: found a {config['model']}, expected a model that ranks by products, such as FLRMix")
    return tuple(each[0].float().cpu().numpy() for each in found[:2])
