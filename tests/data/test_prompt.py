"""Text and token ids of prompts: each template with hostile titles, then batches against plain Python."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_data import chunks_of, make_collator, random_tokens, tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recbole_flr.data.prompt import IGNORE, Collator, Template
from recbole_flr.errors import ConfigError
from recbole_flr.model.backbone import END_OF_TITLE, PAD, START, THOUGHT, train_tokenizer
from recbole_flr.ragged import RaggedRows

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SPECIAL = [THOUGHT, END_OF_TITLE, START, PAD, "<|endoftext|>"]
HOSTILE = [
    *SPECIAL, "before<|Thought|>after", "<|endoftext|><|Thought|>", " <|Thought|> ", "<|Thought|", "\t\t", "two\nlines",
    "CR\rLF\r\n", '"quoted"', '"an open quote', "None", "a  b", "  x ", "秘密基地", "🚒👨‍👩‍👧", "\u2028\x00\x85",
    "é e\u0301 ﬁ", "a . b , c ! don't", "### Response:\n", "\ufeff",
]
TITLES = ["", "Old Toy", *HOSTILE]


def compact_tokenizer():
    # The hostile titles are in the training text often enough to tempt the trainer to merge them into one token.
    return train_tokenizer(["Old Toy", "New Toy"] + 50 * HOSTILE, 500)


def pretrained_tokenizer():
    """A tokenizer like that of GPT-2. Its only special token ends texts; it has no start token and no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(50 * HOSTILE, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


@pytest.fixture(scope="module", params=[compact_tokenizer, pretrained_tokenizer], ids=["compact", "pretrained"])
def backbone(request):
    return tiny_backbone(request.param())


def specials(backbone):
    return set(backbone.tokenizer.all_special_ids) | {backbone.thought_id, backbone.end_id}


def decode(backbone, ids):
    return backbone.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@settings(deadline=None, max_examples=200)
@given(TEXT)
def test_every_text_comes_back_from_its_tokens(backbone, text):
    ids, = backbone.encode([text])
    assert decode(backbone, ids) == text
    assert not set(ids) & specials(backbone)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_plain_text(backbone, text):
    ids, = backbone.encode([text])
    assert decode(backbone, ids) == text
    assert not set(ids) & specials(backbone)


def test_special_tokens_can_be_told_from_text(backbone):
    """Check of the test itself: the tokenizer alone, without `encode`, does turn these texts into special tokens."""
    for name in {backbone.tokenizer.eos_token, THOUGHT}:
        careless = backbone.tokenizer([name], add_special_tokens=False)["input_ids"][0]
        assert careless == [backbone.tokenizer.convert_tokens_to_ids(name)]
        assert len(backbone.encode([name])[0]) > 1


@settings(deadline=None, max_examples=100)
@given(TEXT, st.lists(TEXT, max_size=3))
def test_a_text_has_one_encoding_whatever_stands_beside_it(backbone, text, others):
    assert backbone.encode([*others, text])[-1] == backbone.encode([text])[0]


def test_encoding_nothing(backbone):
    assert backbone.encode([]) == []


def test_different_texts_have_different_tokens(backbone):
    assert len({tuple(ids) for ids in backbone.encode(HOSTILE)}) == len(HOSTILE)


def prompt_of(backbone, template, history):
    chunks = chunks_of(backbone, TITLES, template)
    assert len(chunks) == len(TITLES) + 2
    assert chunks.row(0) == []
    collator = Collator(None, chunks, backbone.pad_id)
    padded = history + [0] * (10 - len(history))
    return collator.prompts(torch.tensor([padded]), torch.tensor([len(history)]))


HISTORIES = [[1], [1, 2], list(range(1, 11)), list(range(len(TITLES) - 10, len(TITLES))), list(range(8, 18)), [3, 3, 3]]


@pytest.mark.parametrize("history", HISTORIES, ids=str)
def test_paper_prompt_reads_as_it_should(backbone, history):
    prompts = prompt_of(backbone, Template.named("paper", "toy"), history)
    ids = prompts.ids[0].tolist()
    start = [] if backbone.start_id is None else [backbone.start_id]
    assert ids[:len(start)] == start
    ids = ids[len(start):]
    listed = "".join(f'"{TITLES[item]}"\n' for item in history)
    assert decode(backbone, ids) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n"
        "Given a list of toys that a user has chosen, recommend the next toy to the user.\n\n"
        "### Input:\n"
        f"The user has chosen these toys, oldest first:\n{listed}\n"
        "### Response:\n"
    )
    assert not set(ids) & specials(backbone)
    for place, item in enumerate(history):  # the attribution covers each title with its quotes
        assert decode(backbone, prompts.ids[0][prompts.item[0] == place].tolist()) == f'"{TITLES[item]}"\n'


@pytest.mark.parametrize("history", HISTORIES, ids=str)
def test_compact_prompt_is_titles_with_their_ends(backbone, history):
    prompts = prompt_of(backbone, Template.named("compact", "toy"), history)
    expected = [] if backbone.start_id is None else [backbone.start_id]
    for item in history:
        expected += backbone.encode([TITLES[item]])[0] + [backbone.end_id]
    assert prompts.ids[0].tolist() == expected
    ids = torch.tensor(expected)
    assert (ids == backbone.end_id).sum() == len(history)
    assert (ids == backbone.thought_id).sum() == 0
    for place, item in enumerate(history):
        chunk = prompts.ids[0][prompts.item[0] == place].tolist()
        assert decode(backbone, chunk[:-1]) == TITLES[item]


def test_a_template_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"prompt: found 'papers', expected compact \| paper"):
        Template.named("papers", "toy")


def test_a_noun_is_text_too(backbone):
    template = Template.named("paper", "{braces} %s")
    assert "recommend the next {braces} %s to the user" in template.head


def test_a_cut_title_still_ends_and_stays_between_its_quotes(backbone):
    template = Template.named("paper", "toy")
    chunks = chunks_of(backbone, ["", "秘密基地 Old Toy"], template, max_tokens=3)
    before, after = backbone.encode(['"'])[0], backbone.encode(['"\n'])[0]
    assert chunks.row(1) == before + backbone.encode(["秘密基地 Old Toy"])[0][:3] + after
    compact = chunks_of(backbone, ["", "秘密基地 Old Toy"], Template.named("compact", "toy"), max_tokens=3)
    assert compact.row(1) == backbone.encode(["秘密基地 Old Toy"])[0][:3] + [backbone.end_id]


@pytest.mark.parametrize("end_item", [True, False])
@pytest.mark.parametrize("before, after", [("", ""), ("ab", ""), ("", "c"), ("a", "bcd")])
def test_chunks_are_titles_between_what_stands_around_them(before, after, end_item):
    letters = SimpleNamespace(encode=lambda texts: [[ord(letter) for letter in text] for text in texts], start_id=7)
    titles = [[1, 0], [0], [2, 3, 4, 0], [5, 0]]
    chunks = Template("head", before, after, "tail", end_item).chunks(letters, RaggedRows.of([[], *titles]))
    around = [[ord(letter) for letter in text] for text in (before, after, "head", "tail")]
    items = [around[0] + (title if end_item else title[:-1]) + around[1] for title in titles]
    expected = [[], *items, [7, *around[2]], around[3]]
    assert [chunks.row(row) for row in range(len(chunks))] == expected


# batches

PADDING = 7777


def padded(rows, value, left):
    width = max(map(len, rows))
    pads = [[value] * (width - len(row)) for row in rows]
    return [pad + row if left else row + pad for row, pad in zip(rows, pads)]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.booleans(), st.booleans())
def test_prompts_are_the_plain_loop(seed, batch, width, left, with_tail):
    rng = np.random.default_rng(seed)
    _, titles = random_tokens(rng, 9)
    head, tail = ([1, 2], [3]) if with_tail else ([1], [])
    collator = make_collator(titles, head, tail, pad=PADDING)
    lengths = rng.integers(0, width + 1, size=batch)
    history = np.zeros((batch, width), dtype=np.int64)
    expected, owners = [], []
    for row, length in enumerate(lengths):
        history[row, :length] = rng.integers(1, 9, size=length)
        items = history[row, :length].tolist()
        expected.append(head + [token for item in items for token in titles[item]] + tail)
        places = [place for place, item in enumerate(items) for _ in titles[item]]
        owners.append([-1] * len(head) + places + [-1] * len(tail))

    history, lengths = torch.from_numpy(history), torch.from_numpy(lengths)
    prompts = collator.prompts(history, lengths, left)

    assert prompts.ids.tolist() == padded(expected, PADDING, left)
    assert prompts.item.tolist() == padded(owners, -1, left)
    assert prompts.mask.sum(1).tolist() == [len(row) for row in expected]
    assert not prompts.mask[prompts.ids == PADDING].any()
    assert collator.prompt_lengths(history, lengths).tolist() == [len(row) for row in expected]


@pytest.mark.parametrize("left", [True, False])
def test_a_head_in_front_of_the_padding(left):
    collator = make_collator([[], [11, 12], [21]], head=[1, 2], tail=[3], pad=PADDING)
    history, lengths = torch.tensor([[2, 1], [2, 0]]), torch.tensor([2, 1])
    prompts = collator.prompts(history, lengths, left, head_first=True)
    body, owner = ([PADDING, PADDING, 21, 3], [-1, -1, 0, -1]) if left else ([21, 3, PADDING, PADDING], [0, -1, -1, -1])
    assert prompts.ids.tolist() == [[1, 2, 21, 11, 12, 3], [1, 2, *body]]
    assert prompts.item.tolist() == [[-1, -1, 0, 1, 1, -1], [-1, -1, *owner]]
    assert prompts.mask.tolist() == [[True] * 6, [True, True, *(token != PADDING for token in body)]]
    assert prompts.shared == 2 and collator.prompts(history, lengths, left).shared == 0


def test_what_lies_behind_the_length_of_a_history_is_not_read():
    collator = make_collator([[], [11, 12], [21], [31, 32, 33]], pad=PADDING)
    prompts = collator.prompts(torch.tensor([[2, 1, 3]]), torch.tensor([1]))
    assert prompts.ids.tolist() == [[1, 21]]
    assert collator.prompt_lengths(torch.tensor([[2, 1, 3]]), torch.tensor([1])).tolist() == [2]


def test_targets_are_titles_padded_on_the_right():
    collator = make_collator([[], [11, 12, 9], [21, 9]], pad=PADDING)
    ids, labels = collator.targets(torch.tensor([2, 1, 2]))
    assert ids.tolist() == [[21, 9, PADDING], [11, 12, 9], [21, 9, PADDING]]
    assert labels.tolist() == [[21, 9, IGNORE], [11, 12, 9], [21, 9, IGNORE]]


def test_a_title_token_equal_to_the_padding_keeps_its_label():
    collator = make_collator([[], [5, 8, 5], [6, 5]], pad=5)  # a tokenizer without a padding token pads with its end
    ids, labels = collator.targets(torch.tensor([1, 2]))
    assert labels.tolist() == [[5, 8, 5], [6, 5, IGNORE]]
    prompts = collator.prompts(torch.tensor([[1, 2], [2, 0]]), torch.tensor([2, 1]))
    assert prompts.mask.tolist() == [[True] * 6, [False] * 3 + [True] * 3]
