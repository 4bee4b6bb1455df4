"""The contract that every registered model fulfils.

- It learns a checkerboard.
- It gives a row the same scores alone and in a batch.
- It gives the same scores after it was loaded from a checkpoint.
- It accepts or refuses another catalogue, as its class declares.
- It recommends the right item.
"""

import pytest
import torch
from conftest import TINY, TINY_OPTIONS
from helpers_pretrained import pretrain

import recbole_flr
from recbole_flr.errors import CheckpointError
from recbole_flr.registry import MODELS, get_model
from recbole_flr.result import read_ranks

WORDS = "Robot Castle Puzzle Dragon Train Paint Farm Dice Ball Drum".split()
MODEL_NAMES = [*MODELS, "SASRec", "GRU4Rec", "Caser"]
OPTIONS = {"epochs": 30, "learning_rate": 0.005, "stopping_step": 30, "eval_step": 30, "checkpoint_every": 0,
           "train_batch_size": 8, "topk": [1, 5], "valid_metric": "NDCG@5"}
TEXT = {"epochs": 60, "eval_step": 60, "learning_rate": 0.01, "warmup_epochs": 10, "embedding_dropout": 0.0,
        "compact_vocab_size": 400, "compact_hidden_size": 32, "compact_layers": 1}
ORDER = {"backward_weight": 0.0, "repeat_weight": 1.0}  # the board has a direction
LEAST_HIT = {"AlphaRec": 0.6}  # it does not see the order; by the colour alone it would reach 0.46
UNTRAINED_WRITERS = ("Base", "CoT")  # a tiny language model is trained for them first
OWN_OPTIONS = {  # enough capacity, enough steps, no dropout
    "FLRMix": {"hidden_size": 32, "dropout": 0.0, "learning_rate": 0.01, "repeat_weight": 0.0},
    "FLR": TEXT, "LatentR3": TEXT, "BIGRec": TEXT, "SASRec": {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0},
    "AlphaRec": {"learning_rate": 0.01, "epochs": 100, "eval_step": 100, "mlp_hidden_size": 64, "num_negatives": 50},
    "ReaRec": {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0},
    "LARES": {"hidden_size": 32, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "depth": 2},
    "Base": {"embedding_dropout": 0.0}, "CoT": {"embedding_dropout": 0.0}, "GRU4Rec": {"dropout_prob": 0.0},
    "SequentialRules": ORDER, "VSKNN": ORDER,
    "Caser": {"dropout_prob": 0.0, "reg_weight": 0.0, "learning_rate": 0.01},
}


def right_answer(item):
    """The next field of the checkerboard: a user on a white field moves to the next white field, and so for black ones."""
    return (item + 2) % len(WORDS)


def write_checkerboard(folder, reverse=False):
    """Write the data set `board` and return `folder`. Users walk from field to field, from every start and for every length.

    With `reverse` the files list the same items and rows in the opposite order, so that RecBole numbers the items anew.
    """
    target = folder / "board"
    target.mkdir(parents=True)
    order = -1 if reverse else 1
    items = [f"f{number}\t{word}" for number, word in enumerate(WORDS)]
    (target / "board.item").write_text("\n".join(["item_id:token\ttitle:token", *items[::order]]) + "\n")
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
    rows = []
    for start in range(len(WORDS)):
        walk = [(start + 2 * step) % len(WORDS) for step in range(6)]
        for length in range(2, 6):
            rows.append(f"u{start}\t{' '.join(f'f{field}' for field in walk[:length])}\tf{walk[length]}\t{length}")
    for part in ("train", "valid", "test"):
        (target / f"board.{part}.inter").write_text("\n".join([head, *rows[::order]]) + "\n")
    return folder


@pytest.fixture(scope="session")
def boards(tmp_path_factory):
    """Two folders with the data set `board`. In the second one, RecBole gives the items other internal ids."""
    root = tmp_path_factory.mktemp("boards")
    return write_checkerboard(root / "one"), write_checkerboard(root / "other", reverse=True)


@pytest.fixture(scope="session", params=MODEL_NAMES)
def run(request, boards, tmp_path_factory):
    """A model that was trained on the checkerboard, once for all tests: its name, run folder and result, and `boards`."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    options = {**TINY_OPTIONS.get(name, TINY), **OPTIONS, **OWN_OPTIONS[name], "data_path": str(boards[0])}
    if name in UNTRAINED_WRITERS:
        options["backbone"] = pretrain(name, "board", options, WORDS, folder / "lm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = recbole_flr.run_recbole_flr(name, "board", config_dict=options)
    return name, next((folder / "saved").iterdir()), result, boards


def test_it_learns_the_checkerboard(run):
    name, _, result, _ = run
    assert result["test_result"]["hit@1"] > LEAST_HIT.get(name, 0.95), name


def test_a_batch_is_scored_as_its_rows_are(run):
    _, folder, *_ = run
    _, model, *_, test_data = recbole_flr.load_data_and_model(folder)
    batch = next(iter(test_data))[0]
    assert len(batch) > 5
    with torch.no_grad():
        together = model.full_sort_predict(batch).view(len(batch), -1)
        for row in range(0, len(batch), 3):
            alone = model.full_sort_predict(batch[torch.tensor([row])]).view(1, -1)
            torch.testing.assert_close(together[row:row + 1, 1:], alone[:, 1:], rtol=1e-4, atol=1e-4)


def test_it_comes_back_from_its_checkpoint(run):
    """The loaded model gives the scores that the run itself saved in ranks.npz."""
    _, folder, _, _ = run
    saved = read_ranks(folder)
    for path in (folder, folder / "best.safetensors"):
        _, model, _, _, _, test_data = recbole_flr.load_data_and_model(path)
        with torch.no_grad():
            scores = torch.cat([model.full_sort_predict(batch[0]).view(len(batch[0]), -1) for batch in test_data])
        scores[:, 0] = -torch.inf
        top = scores.topk(5)
        torch.testing.assert_close(top.values, torch.from_numpy(saved["test_top_scores"]), rtol=1e-5, atol=1e-5)
        assert (top.indices.numpy() == saved["test_top_items"]).all()


def test_another_catalogue_is_taken_or_refused_as_declared(run):
    name, folder, _, (_, other) = run
    changed = {"data_path": str(other)}
    if get_model(name).weights_depend_on_item_ids:
        with pytest.raises(CheckpointError, match="not those that the run was trained on"):
            recbole_flr.load_data_and_model(folder, changed)
        return
    loaded = recbole_flr.load_data_and_model(folder, changed)  # titles keep their meaning, whatever their ids are
    for field in (0, 3):
        answer = recbole_flr.recommend(loaded, [WORDS[field], WORDS[right_answer(field)]], k=1)
        assert answer["items"][0]["title"] == WORDS[right_answer(right_answer(field))]


def test_recommend_gives_the_right_answer(run):
    name, folder, *_ = run
    loaded = recbole_flr.load_data_and_model(folder)
    for field in range(len(WORDS)):
        history = [field, right_answer(field)]
        answer = recbole_flr.recommend(loaded, [WORDS[history[0]], f"f{history[1]}"], k=5)
        titles = [item["title"] for item in answer["items"]]
        # Caser has a vector for each user, and the user of a history is not known; AlphaRec does not see the order
        assert len(titles) == 5 and WORDS[right_answer(history[1])] in titles[:3 if name in ("AlphaRec", "Caser") else 1]
        for factor in answer["factors"]:
            assert {entry["title"] for entry in factor["history"]} == {WORDS[each] for each in history}
    assert bool(answer["factors"]) == (name in ("FLR", "FLRMix", "LatentR3"))
