from types import SimpleNamespace

import pytest
import torch
from helpers_data import chunks_of, tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recbole_flr.data.catalog import Tokens
from recbole_flr.data.collate import Collator
from recbole_flr.data.prompt import Template
from recbole_flr.model.backbone import END_OF_TITLE, PAD, START, THOUGHT, train_tokenizer

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
    """As GPT-2's: one special token, which ends texts, no start token and no padding."""
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
    """The control: without the precaution of `encode` the same texts do become special tokens."""
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
    assert len(chunks.start) - 1 == len(TITLES) + 2
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
    chunks = Template("head", before, after, "tail", end_item).chunks(letters, Tokens.of([[], *titles]))
    around = [[ord(letter) for letter in text] for text in (before, after, "head", "tail")]
    expected = [[], *(around[0] + (title if end_item else title[:-1]) + around[1] for title in titles), [7, *around[2]], around[3]]
    assert [chunks.row(row) for row in range(len(chunks.start) - 1)] == expected
