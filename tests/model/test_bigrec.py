"""BIGRec with both kinds of grounding against full passes of the language model, one row and one title at a time."""

import json
import math
import shutil

import pytest
import torch
from conftest import draw_weights

from recbole_flr.data.prompt import IGNORE
from recbole_flr.errors import ConfigError
from recbole_flr.model.bigrec import SupervisedBIGRec
from recbole_flr.quick_start import build_trainer
from recbole_flr.training import checkpoint
from recbole_flr.training.warmup import WarmUp

BACKBONES = ["compact", "qwen2", "llama", "gpt2"]


@pytest.fixture
def bigrec(build, saved_models):
    """bigrec(backbone, **options) -> model, test rows. Float64, no dropout, weights so large that texts differ."""

    def make(backbone="compact", std=0.4, **options):
        backbone = str(saved_models.get(backbone, backbone))
        _, model, loaders = build("BIGRec", backbone=backbone, torch_dtype="float64", num_beams=40, **options)
        rows = next(iter(loaders[2]))[0]
        return draw_weights(model, std).double().eval(), rows[torch.arange(5)]

    return make


def teach(model, rows, steps):
    """Train the model on some rows for some steps of Adam. It is in evaluation mode afterwards."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model.calculate_loss(rows).backward()
        optimizer.step()
    model.eval()


# the oracles: the same mathematics without batch, padding, cache and trie


def prompt_of(model, rows, row):
    """Token ids of one row's prompt, as a list."""
    chunks, head = model.collator.chunks, model.n_items
    history = rows[model.ITEM_SEQ][row, :rows[model.ITEM_SEQ_LEN][row]].tolist()
    return [token for chunk in [head, *history, head + 1] for token in chunks.row(chunk)]


def title_log_prob(model, prompt, title):
    """Log-probability of a title after a prompt by one full pass: a scalar with gradient."""
    logits = model.backbone.lm(input_ids=torch.tensor([prompt + title]), use_cache=False).logits[0]
    ends = {tuple(model.collator.titles.row(item)) for item in range(1, model.n_items)}
    total = 0.0
    for place, token in enumerate(title):
        scores = logits[len(prompt) + place - 1]
        if model.score == "trie":
            allowed = sorted({end[place] for end in ends if end[:place] == tuple(title[:place])})
            scores, token = scores[allowed], allowed.index(token)
        total = total + scores.log_softmax(-1)[token]
    return total


def write_slowly(model, prompt, limit):
    """The greedy text after a prompt, without its end. Each token takes a full pass."""
    text = []
    while len(text) < limit:
        logits = model.backbone.lm(input_ids=torch.tensor([prompt + text]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == model.backbone.end_id:
            break
        text.append(token)
    return text


def embed_slowly(model, text):
    """Last state of one text (without its end) in the untuned language model: [D]."""
    start = [] if model.backbone.start_id is None else [model.backbone.start_id]
    tokens = start + text or [model.backbone.end_id]
    return model.untuned.lm.base_model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0, -1]


def distances(model, texts):
    """Minus the distances of texts to the catalogue's titles: [len(texts), n_items], -inf for item 0."""
    scores = torch.full((len(texts), model.n_items), -math.inf, dtype=torch.float64)
    written = [embed_slowly(model, text) for text in texts]
    for item in range(1, model.n_items):
        title = embed_slowly(model, model.collator.titles.row(item)[:-1])
        for row, own in enumerate(written):
            scores[row, item] = -(own - title).square().sum().sqrt()
    return scores


def cut(model, ids):
    """Rows of token ids -> lists up to the first end of title."""
    rows = ids.tolist()
    return [row[:row.index(model.backbone.end_id)] if model.backbone.end_id in row else row for row in rows]


def prompts_of(model, rows):
    return model.collator.prompts(rows[model.ITEM_SEQ], rows[model.ITEM_SEQ_LEN])


def pairs_of(model, rows):
    """Each row once for each item."""
    items = torch.arange(1, model.n_items)
    pairs = rows[torch.arange(len(rows)).repeat_interleave(len(items))]
    pairs[model.ITEM_ID] = items.repeat(len(rows))
    return pairs


# reading, and grounding: trie


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"prompt": "compact"}])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_loss_and_gradient_are_those_of_plain_full_passes(bigrec, backbone, options):
    model, rows = bigrec(backbone, **options)
    assert len(set(model.prompt_lengths(rows).tolist())) > 2
    parameters = dict(model.named_parameters())
    assert all(name.startswith("backbone.") for name in parameters)
    model.train()  # gradient checkpoints are made in training only
    loss = model.calculate_loss(rows)
    gradients = torch.autograd.grad(loss, parameters.values())
    count = (model.collator.targets(rows[model.ITEM_ID])[1] != IGNORE).sum()
    expected = -sum(
        title_log_prob(model.eval(), prompt_of(model, rows, row), model.collator.titles.row(item))
        for row, item in enumerate(rows[model.ITEM_ID].tolist())
    ) / count
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    for name, got, want in zip(parameters, gradients, torch.autograd.grad(expected, parameters.values())):
        assert got.abs().max() > 1e-8, name
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("backbone, options", [
    *((backbone, {}) for backbone in BACKBONES), ("compact", {"score": "trie"}), ("llama", {"prompt": "compact"}),
    ("compact", {"gradient_checkpointing": True, "length_penalty": 0.7}),
])
def test_ranking_under_the_trie_equals_brute_force(bigrec, backbone, options):
    model, rows = bigrec(backbone, **options)
    rows = rows[torch.arange(3)]
    assert len(set(model.prompt_lengths(rows).tolist())) > 1
    expected = torch.full((len(rows), model.n_items), -math.inf, dtype=torch.float64)
    with torch.no_grad():
        for row in range(len(rows)):
            prompt = prompt_of(model, rows, row)
            for item in range(1, model.n_items):
                title = model.collator.titles.row(item)
                expected[row, item] = title_log_prob(model, prompt, title) / len(title) ** model.length_penalty
        got, single = model.full_sort_predict(rows, model.n_items), model.predict(pairs_of(model, rows)).view(len(rows), -1)
    assert got[:, 0].eq(-math.inf).all()
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(single.double(), expected[:, 1:], rtol=1e-6, atol=1e-6)


# grounding: embedding


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("steps", [0, 30])
def test_greedy_writing_equals_a_loop_of_full_passes(bigrec, backbone, steps):
    model, rows = bigrec(backbone, grounding="embedding", grounding_beams=1, max_title_tokens=6)
    teach(model, rows, steps)
    with torch.no_grad():
        written = model.write(prompts_of(model, rows))
        got = cut(model, written)
        assert got == [write_slowly(model, prompt_of(model, rows, row), 7) for row in range(len(rows))]
    ended = (written == model.backbone.end_id).any(1)
    assert ended.all() if steps else not ended.any()  # texts stop at their end, or at the limit
    assert len(set(map(tuple, got))) > 1


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_write_the_best_of_all_texts(bigrec, penalty):
    """With a beam for each token of the vocabulary, beam search over two tokens tries all texts."""
    model, rows = bigrec(grounding="embedding", grounding_beams=330, max_title_tokens=1, length_penalty=penalty, std=0.1)
    lm, end = model.backbone.lm, model.backbone.end_id
    size = lm.config.vocab_size
    assert size <= 330
    expected = []
    with torch.no_grad():
        for row in range(len(rows)):
            prompt = torch.tensor(prompt_of(model, rows, row))
            first = lm(input_ids=prompt[None], use_cache=False).logits[0, -1].log_softmax(-1)
            longer = torch.cat([prompt.expand(size, -1), torch.arange(size)[:, None]], dim=1)
            both = first[:, None] + lm(input_ids=longer, use_cache=False).logits[:, -1].log_softmax(-1)
            both[end] = -math.inf  # no token follows the end
            best = divmod(int(both.argmax()), size)
            expected.append([] if first[end] > both.max() / 2 ** penalty else [t for t in best if t != end])
        got = cut(model, model.write(prompts_of(model, rows)))
    assert got == expected
    assert any(expected) if penalty else not all(expected)


@pytest.mark.parametrize("backbone, beams", [*((backbone, 1) for backbone in BACKBONES), ("compact", 3), ("gpt2", 3)])
def test_ranking_by_embedding_equals_brute_force(bigrec, backbone, beams):
    model, rows = bigrec(backbone, grounding="embedding", grounding_beams=beams, max_title_tokens=8)
    with torch.no_grad():
        if beams == 1:
            texts = [write_slowly(model, prompt_of(model, rows, row), 9) for row in range(len(rows))]
        else:  # one row alone has no padding
            texts = [cut(model, model.write(prompts_of(model, rows[torch.tensor([row])])))[0] for row in range(len(rows))]
        expected, got = distances(model, texts), model.full_sort_predict(rows)
        single = model.predict(pairs_of(model, rows)).view(len(rows), -1)
    assert len(set(map(tuple, texts))) > 1
    assert got.shape == (len(rows), model.n_items) and got[:, 0].eq(-math.inf).all() and got[:, 1:].isfinite().all()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(got.argsort(descending=True), expected.argsort(descending=True))
    torch.testing.assert_close(single, got[:, 1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beams", [1, 4])
def test_batch_equals_singles(bigrec, beams):
    model, rows = bigrec(grounding="embedding", grounding_beams=beams, eval_batch_size=7)
    teach(model, rows, 20)
    with torch.no_grad():
        together = model.full_sort_predict(rows)
        for number in range(len(rows)):
            alone = model.full_sort_predict(rows[torch.tensor([number])])
            torch.testing.assert_close(together[number], alone[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("start", ["own", "none", "end"])
def test_which_tokens_of_a_title_are_embedded(bigrec, start):
    model, _ = bigrec(grounding="embedding")
    backbone = model.backbone
    backbone.start_id = {"own": backbone.start_id, "none": None, "end": backbone.end_id}[start]
    end, pad = backbone.end_id, backbone.pad_id
    ids = torch.tensor([[end, 9, 9, 9], [9, end, 40, 41], [9, 40, 41, 42], [9, pad, 40, end], [9, end, pad, pad]])
    texts = [[], [9], [9, 40, 41, 42], [9, pad, 40], [9]]
    got = model.embed_titles(ids)
    assert not got.requires_grad
    for row, text in enumerate(texts):
        torch.testing.assert_close(got[row], embed_slowly(model, text), rtol=1e-6, atol=1e-6)


def test_a_title_that_was_written_word_for_word_ranks_first(bigrec, monkeypatch):
    model, rows = bigrec(grounding="embedding")
    items = rows[model.ITEM_ID]
    monkeypatch.setattr(model, "write", lambda prompts: model.collator.targets(items)[0])
    assert model.full_sort_predict(rows).argmax(1).tolist() == items.tolist()


def test_items_of_one_title_stand_in_order_of_popularity(bigrec):
    model, rows = bigrec(grounding="embedding", duplicate_titles="share", max_title_tokens=8)
    with torch.no_grad():
        order = model.full_sort_predict(rows).argsort(descending=True)[:, :-1]
    items = model.catalog.by_popularity().tolist()
    shared = [[item for item in items if model.catalog.titles[item] == title] for title in set(model.catalog.titles[1:])]
    shared = [group for group in shared if len(group) > 1]
    assert shared
    for row in order.tolist():
        for group in shared:  # side by side
            first = row.index(group[0])
            assert row[first:first + len(group)] == group


def test_the_generation_settings_of_the_language_model_do_not_act(bigrec, saved_models, tmp_path, caplog):
    folder = tmp_path / "loud"
    shutil.copytree(saved_models["qwen2"], folder)
    settings = {"do_sample": True, "temperature": 0.1, "top_k": 3, "repetition_penalty": 30.0, "no_repeat_ngram_size": 1,
                "eos_token_id": [2, *range(10, 200)], "min_new_tokens": 9}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model, rows = bigrec(str(folder), grounding="embedding", grounding_beams=1, max_title_tokens=6)
    caplog.clear()
    with torch.no_grad():
        got = cut(model, model.write(prompts_of(model, rows)))
        assert got == [write_slowly(model, prompt_of(model, rows, row), 7) for row in range(len(rows))]
    assert any(len(set(text)) < len(text) for text in got)  # the penalties would have prevented repeated tokens
    assert not caplog.records


# the untuned backbone


def states(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("backbone", ["compact", "qwen2"])
def test_only_the_backbone_learns_and_a_compact_one_is_copied_before_the_supervised_stage(build, bigrec, backbone):
    config = build("BIGRec")[0]
    model, rows = bigrec(backbone, grounding="embedding", grounding_beams=1, max_title_tokens=6)
    model.untuned.load_state_dict(model.backbone.state_dict())
    before = states(model.untuned)
    ranking = model.full_sort_predict(rows)
    model.train()
    assert model.backbone.training and not any(module.training for module in model.untuned.modules())
    teach(model, rows, 1)
    assert not any(p.requires_grad for p in model.untuned.parameters())
    assert same(states(model.untuned), before) and not same(states(model.backbone), before)
    stages = {stage.name: stage(model, config) for stage in model.stages}
    assert [type(stage) for stage in stages.values()] == [WarmUp, SupervisedBIGRec]
    stages["warmup"].enter(), stages["warmup"].begin(), stages["sft"].enter()
    assert same(states(model.untuned), before)
    stages["sft"].begin()
    now = states(model.untuned)
    assert same(now, states(model.backbone) if backbone == "compact" else before)
    with torch.no_grad():
        after = model.full_sort_predict(rows)
        texts = [write_slowly(model, prompt_of(model, rows, row), 7) for row in range(len(rows))]
        torch.testing.assert_close(after, distances(model, texts), rtol=1e-6, atol=1e-6)  # titles are embedded anew
    if backbone == "compact":
        assert not torch.allclose(after[:, 1:], ranking[:, 1:])
    teach(model, rows, 1)  # the copy does not share memory with the trained backbone
    assert same(states(model.untuned), now)


def test_the_trainer_lets_the_untuned_backbone_be_that_of_the_warm_up(build):
    config, model, loaders = build("BIGRec", grounding="embedding", max_title_tokens=6, epochs=1, warmup_epochs=1)
    trainer, seen, at_first = build_trainer(config, model), {}, states(model.untuned)

    def watch(stage, own):
        stage.begin = lambda: (seen.update({stage.name: states(model.backbone)}), own())

    for stage in trainer.stages.values():
        watch(stage, stage.begin)
    trainer.fit(loaders[0], loaders[1], saved=False, verbose=False)
    assert list(seen) == ["warmup", "sft"] and same(seen["warmup"], at_first)
    assert same(states(model.untuned), seen["sft"])
    assert not same(seen["sft"], at_first) and not same(seen["sft"], states(model.backbone))


@pytest.mark.parametrize("backbone, trainable", [
    ("compact", "full"), ("qwen2", "full"), ("gpt2", "full"), ("llama", "lora"), ("qwen2", "lora"),
])
def test_checkpoint_round_trip(build, saved_models, tmp_path, backbone, trainable):
    options = dict(backbone=str(saved_models.get(backbone, backbone)), trainable=trainable, grounding="embedding",
                   max_title_tokens=6)
    _, model, loaders = build("BIGRec", **options)
    rows = next(iter(loaders[2]))[0][torch.arange(4)]
    if backbone == "compact":
        teach(model, rows, 1)
        model.keep_untuned()
    teach(model, rows, 3)
    expected = model.full_sort_predict(rows)
    tensors, meta = checkpoint.pack_model(model)
    assert not any("title_embeddings" in name for name in tensors)
    assert any(name.startswith("model.untuned.") for name in tensors) == (backbone == "compact")
    assert any("lora_" in name for name in tensors) == (trainable == "lora")
    checkpoint.write(tmp_path / "x.safetensors", tensors, meta)

    _, other, _ = build("BIGRec", **options)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if f"model.{name}" in tensors:
                parameter.add_(torch.randn_like(parameter))
    assert not torch.allclose(other.eval().full_sort_predict(rows)[:, 1:], expected[:, 1:])  # embeds its titles
    checkpoint.unpack_model(other, *checkpoint.read(tmp_path / "x.safetensors"))
    assert torch.equal(other.full_sort_predict(rows), expected)


# options


@pytest.mark.parametrize("options, message", [
    ({"grounding": "words"}, "grounding: found 'words', expected trie . embedding"),
    ({"grounding_beams": 0}, "grounding_beams: found 0, expected int >= 1"),
])
def test_wrong_options_are_refused(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build("BIGRec", **options)


def test_under_the_trie_there_is_no_second_backbone(build):
    _, model, _ = build("BIGRec")
    model.keep_untuned()
    assert [name for name, _ in model.named_children()] == ["backbone"]
    assert all(name.startswith("backbone.") for name in model.state_dict())


def test_only_beams_under_the_trie_must_be_as_many_as_topk(build):
    """With ``grounding: embedding`` all items are ranked by distance, so the number of beams does not matter."""
    _, model, _ = build("BIGRec", grounding="embedding", num_beams=3, topk=[5, 10])
    assert model.most_items() is None
    with pytest.raises(ConfigError, match="num_beams: found 3, expected at least 10"):
        build("BIGRec", grounding="trie", num_beams=3, topk=[5, 10])
    assert build("BIGRec", grounding="trie", num_beams=12, topk=[5, 10])[1].most_items() == 12
