"""Base: a pretrained model as it is. Its scores are the sums of log-probabilities that a plain loop gives."""

import pytest
import torch
from conftest import TINY_OPTIONS
from helpers_training import only_run

from recbole_flr.errors import ConfigError
from recbole_flr.quick_start import load_data_and_model, run_recbole_flr

OPTIONS = {"num_beams": 20, "title_metrics": False}


def plain_scores(model, history):
    """Log-probability of each item's title behind the paper's prompt: one full pass of the language model for each item."""
    head = ("Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
            "that appropriately completes the request.\n\n### Instruction:\nGiven a list of toys that a user has chosen, "
            "recommend the next toy to the user.\n\n### Input:\nThe user has chosen these toys, oldest first:\n")
    backbone, texts = model.backbone, model.catalog.texts
    pieces = [head]
    for item in history:
        pieces += ['"', texts[item], '"\n']
    prompt = [backbone.start_id, *(token for piece in [*pieces, "\n### Response:\n"] for token in backbone.encode([piece])[0])]
    scores = []
    for text in texts[1:]:
        title = backbone.encode([text])[0] + [backbone.end_id]
        log_probs = backbone.lm(input_ids=torch.tensor([prompt + title])).logits[0].log_softmax(-1)
        scores.append(sum(log_probs[len(prompt) - 1 + step, token].item() for step, token in enumerate(title)))
    return torch.tensor(scores)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_items_are_ranked_by_the_log_probability_of_their_titles(build, saved_models, family):
    _, model, (*_, test_data) = build("Base", backbone=str(saved_models[family]), item_noun="toy", **OPTIONS)
    rows = next(iter(test_data))[0][torch.arange(3)]
    found = model.eval().full_sort_predict(rows, top=model.n_items - 1)
    for number in range(3):
        history = rows[model.ITEM_SEQ][number][:rows[model.ITEM_SEQ_LEN][number]].tolist()
        torch.testing.assert_close(found[number, 1:], plain_scores(model, history), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["Base", "CoT"])
def test_the_compact_backbone_is_refused(build, model):
    with pytest.raises(ConfigError, match="backbone: found compact, expected a pretrained language model"):
        build(model)


def test_nothing_is_trained_and_no_weight_of_the_backbone_is_saved(saved_models, tiny_data):
    options = {**TINY_OPTIONS["Base"], "data_path": str(tiny_data), "backbone": str(saved_models["llama"])}
    result = run_recbole_flr("Base", "tiny", config_dict=options)
    folder = only_run()
    assert (folder / "best.safetensors").stat().st_size < 20_000
    assert not (folder / "thoughts.jsonl").exists()
    _, model, *_ = load_data_and_model(folder)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert 0 <= result["test_result"]["ndcg@5"] <= 1
