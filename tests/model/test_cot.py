"""CoT: the reasoning is what the language model's own greedy decoding writes; the title follows it as in one long prompt."""

import json

import pytest
import torch
from conftest import TINY_OPTIONS
from helpers_training import only_run
from transformers import GenerationConfig

from recbole_flr import recommend
from recbole_flr.model.backbone import growing
from recbole_flr.model.cot import HEADING
from recbole_flr.model.reasoner import read_prompt
from recbole_flr.quick_start import run_recbole_flr


@pytest.fixture
def cot(build, saved_models):
    """cot(**options) -> model and four test rows. The weights are drawn so that reasoning ends at different lengths."""

    def make(**options):
        _, model, (*_, test_data) = build("CoT", backbone=str(saved_models["llama"]), **options)
        torch.manual_seed(0)
        for parameter in model.backbone.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
        return model.eval(), next(iter(test_data))[0][torch.arange(4)]

    return make


def written_by(model, rows):
    """The reasoning of each row: lists of token ids."""
    with model.kept_texts() as texts, torch.no_grad():
        context = model.read_context(rows)
    prompts = model._prompts(rows)
    return context, prompts, texts


@torch.no_grad()
def test_the_reasoning_is_what_greedy_decoding_writes(cot):
    """Compared with `generate` of transformers, row by row, with the same ends."""
    model, rows = cot(max_thought_tokens=12)
    lm, ends = model.backbone.lm, model.ends.tolist()
    half = lm.lm_head.weight.shape[0] // 2  # many ends, so that the rows end at different steps
    model.ends = torch.tensor(sorted({*ends, *range(half, half + half // 4)}))
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=model.ends.tolist(), pad_token_id=0,
                                suppress_tokens=[model.backbone.thought_id])
    _, prompts, texts = written_by(model, rows)
    lengths = set()
    for number in range(len(rows)):
        ids = prompts.ids[number][prompts.mask[number]][None]
        own = lm.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0, ids.shape[1]:].tolist()
        own = own[:-1] if own[-1] in model.ends.tolist() else own
        assert texts[number]["tokens"] == len(own)
        assert texts[number]["thought"] == model.backbone.tokenizer.decode(own).strip()
        lengths.add(len(own))
    assert len(lengths) > 1


@torch.no_grad()
def test_titles_are_scored_as_behind_one_long_prompt(cot):
    """Prompt, reasoning and heading as one sequence, read by one full pass for each row."""
    model, rows = cot(max_thought_tokens=7, num_beams=20)
    half = model.backbone.lm.lm_head.weight.shape[0] // 2
    model.ends = torch.arange(half, half + half // 3)
    prompts = model._prompts(rows)
    context = read_prompt(model.backbone, model.backbone.embed(prompts.ids), prompts.mask)
    tokens, written = model.write_thoughts(context, growing(context.cache))
    together = model.full_sort_predict(rows, top=model.n_items - 1)
    for number in range(len(rows)):
        prompt = torch.cat([prompts.ids[number][prompts.mask[number]], tokens[number][written[number]], model.response]).tolist()
        for item in (1, 5, 9):
            title = model.collator.titles.row(item)
            log_probs = model.backbone.lm(input_ids=torch.tensor([prompt + title])).logits[0].log_softmax(-1)
            own = sum(log_probs[len(prompt) - 1 + step, token].item() for step, token in enumerate(title))
            assert together[number, item].item() == pytest.approx(own, rel=1e-4, abs=1e-3)
    assert written.sum(1).unique().numel() > 1


@torch.no_grad()
def test_a_reasoning_may_be_empty(cot):
    model, rows = cot(max_thought_tokens=3)
    model.ends = torch.arange(model.backbone.lm.lm_head.weight.shape[0])
    _, _, texts = written_by(model, rows)
    assert [text["tokens"] for text in texts] == [0] * 4 and {text["thought"] for text in texts} == {""}
    assert (model.full_sort_predict(rows)[:, 1:] > -torch.inf).any()


@torch.no_grad()
def test_drawn_reasoning_follows_the_temperature(cot):
    model, rows = cot(max_thought_tokens=1, thought_temperature=0.7)
    logits = torch.randn(1, model.backbone.lm.lm_head.weight.shape[0]).mul(2)
    logits[0, model.backbone.thought_id] = 50.0  # never written, however likely
    expected = logits.clone()
    expected[0, model.backbone.thought_id] = -torch.inf
    drawn = torch.bincount(model._choose(logits.expand(40_000, -1)), minlength=logits.shape[1]) / 40_000
    assert (drawn - (expected / 0.7).softmax(-1)[0]).abs().max() < 0.01


def test_headings_end_the_reasoning(cot):
    model, _ = cot()
    vocabulary = model.backbone.tokenizer.get_vocab()
    assert set(model.ends.tolist()) == {model.backbone.end_id, *(n for token, n in vocabulary.items() if HEADING in token)}


def test_the_texts_of_the_test_rows_are_saved_and_recommend_shows_one(saved_models, tiny_data):
    options = {**TINY_OPTIONS["CoT"], "data_path": str(tiny_data), "backbone": str(saved_models["llama"])}
    run_recbole_flr("CoT", "tiny", config_dict=options)
    lines = (only_run() / "thoughts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line) for line in lines]
    rows = [line.split("\t") for line in (tiny_data / "tiny" / "tiny.test.inter").read_text().splitlines()[1:]]
    assert sorted((text["user"], " ".join(text["history"])) for text in texts) == sorted((row[0], row[1]) for row in rows)
    assert all(isinstance(text["thought"], str) and 0 <= text["tokens"] <= 4 for text in texts)
    own = texts[0]
    answer = recommend(only_run(), own["history"], k=2)
    assert answer["thought"] == own["thought"] and len(answer["items"]) == 2


def test_a_text_that_is_no_item_has_no_id_in_the_kept_texts(build, saved_models):
    """recommend --as-text."""
    _, model, (*_, test_data) = build("CoT", backbone=str(saved_models["llama"]))
    model.eval()
    row = next(iter(test_data))[0][torch.tensor([0])]
    row[model.ITEM_SEQ][0, 0] = model.n_items
    with torch.no_grad(), model.reading(["A Robot made of Paint"]), model.kept_texts() as texts:
        model.full_sort_predict(row)
    assert texts[0]["history"][0] is None
