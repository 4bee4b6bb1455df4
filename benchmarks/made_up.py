"""Made-up catalogues, prompts and models for the benchmarks, which therefore need no data set and no pretrained weights.

There are two kinds of catalogue. Titles of words of one token each give prompts and targets of exact lengths (:func:`build`,
:func:`batch`). Titles like those of a shop have brands and product lines that many titles share (:func:`shop_titles`).

Shapes: B prompts, H titles of a history, L prompt tokens, T title tokens.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from benchmarks.harness import add_device, check_device, parser
from benchmarks.shapes import add_backbone, check_backbone, model_options
from benchmarks.throughput import add_throughput, check_throughput
from recbole_flr.config import Config
from recbole_flr.data.loading import load_dataset, split
from recbole_flr.data.packing import Packed
from recbole_flr.data.prompt import IGNORE
from recbole_flr.model.backbone import END_OF_TITLE, PAD, START, THOUGHT

_SPLIT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}


# ---- titles as in a shop -----------------------------------------------------------------------------------------------


def shop_titles(count, seed=0):
    """Distinct titles of 3 to 15 words, like those of a shop: a brand, often one of its product lines, then any words.

    Brands and words are drawn by Zipf's law, so some beginnings are shared by thousands of titles.

    Returns:
        list of `count` str.
    """
    rng = np.random.default_rng(seed)
    consonants, vowels = list("bcdfghklmnprstvz"), list("aeiou")

    def words(number):
        syllables = rng.integers(1, 4, number)
        letters = np.char.add(rng.choice(consonants, (number, 3)), rng.choice(vowels, (number, 3)))
        return ["".join(row[:n]) for row, n in zip(letters.tolist(), syllables.tolist())]

    def zipf(size, number):
        weights = 1 / np.arange(1, number + 1)
        return np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(size)).clip(max=number - 1)

    brands = [word.capitalize() for word in words(2000)]
    lines = [[word.capitalize() for word in words(8)] for _ in brands]
    common = words(20000)
    n_words = (2 + rng.poisson(5, count)).clip(2, 14).tolist()
    brand, line, has_line = zipf(count, len(brands)).tolist(), zipf(count, 8).tolist(), (rng.random(count) < 0.7).tolist()
    drawn = iter(zipf(sum(n_words), len(common)).tolist())
    found, times = [], {}
    for place in range(count):
        text = [brands[brand[place]]] + [lines[brand[place]][line[place]]] * has_line[place]
        text = " ".join(text + [common[next(drawn)] for _ in range(n_words[place] - has_line[place])])
        times[text] = times.get(text, 0) + 1
        found.append(text if times[text] == 1 else f"{text} #{times[text]}")
    return found


# ---- users of such a shop ----------------------------------------------------------------------------------------------

HISTORY = 10  # H, titles of a history


def histories(texts, number, seed):
    """Item ids that users chose, int64 [number, H + 1]. A user keeps to one brand (first word of a title) 80% of the time."""
    rng = np.random.default_rng(seed)
    brands = {}
    for item, text in enumerate(texts, start=1):
        brands.setdefault(text.split()[0], []).append(item)
    rows = []
    for anchor in rng.integers(len(texts), size=number):
        own = brands[texts[anchor].split()[0]]
        rows.append([rng.choice(own) if rng.random() < 0.8 else rng.integers(len(texts)) + 1 for _ in range(HISTORY + 1)])
    return torch.tensor(np.array(rows, dtype=np.int64))


def warm_up(model, batches):
    """Train a model for one step on each batch [B, H + 1], with two losses: language modelling of the whole sequence, and the
    model's own loss for the last title."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    model.train()
    for rows in batches:
        optimizer.zero_grad()
        loss = language_model_loss(model, rows) + model.calculate_loss(interaction(model, rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        falling.step()


def language_model_loss(model, rows):
    """Mean cross entropy of the next token in whole sequences: item ids [B, H + 1] -> scalar."""
    rows = rows.to(model.device)
    prompts = model.collator.prompts(rows, torch.full((len(rows),), rows.shape[1], device=rows.device), left=False)
    labels = torch.where(prompts.mask, prompts.ids, IGNORE).roll(-1, 1)
    labels[:, -1] = IGNORE
    positions = torch.arange(prompts.ids.shape[1], device=rows.device).expand_as(prompts.ids)
    return model.language_model_loss(Packed(prompts.ids, positions, prompts.mask.long() - 1, labels))


def interaction(model, rows):
    """Item ids [B, H + 1] -> RecBole's batch of histories on the model's device. The last item of each row is the target."""
    return Interaction({
        model.ITEM_SEQ: rows[:, :-1].contiguous(), model.POS_ITEM_ID: rows[:, -1].contiguous(),
        model.ITEM_SEQ_LEN: torch.full((len(rows),), rows.shape[1] - 1),
    }).to(model.device)  # fmt: skip


# ---- prompts and targets of exact lengths ------------------------------------------------------------------------------

SIZES = {  # option: default, least, meaning
    "prompt": (200, 5, "L, tokens of a prompt; longer than two targets"), "target": (12, 2, "T, tokens of a target with its end"),
    "layers": (2, 1, "layers of the backbone"), "refinements": (2, 1, "N, refinements of a thought"),
    "items": (1000, 1, "titles of the made-up catalogue"), "vocabulary": (4000, 8, "V, tokens of the made-up vocabulary"),
    "repeats": (5, 1, "timed steps of each version"), "threads": (None, 1, "threads of torch (default: torch's own choice)"),
}  # fmt: skip


def parse_sizes(module, description, numbers, arguments, switches=None, trainable=False):
    """Parse a command line whose options are `SIZES`, `numbers`, `switches` (name -> meaning), `--json`, the internal
    `--memory-of`, and those of the device, of the backbone (with `--trainable` if `trainable`) and of the throughput."""
    command = parser(module, description, {**SIZES, **numbers})
    for name, meaning in (switches or {}).items():
        command.add_argument(f"--{name}", action="store_true", help=meaning)
    add_device(command)
    add_backbone(command, trainable)
    add_throughput(command)
    command.add_argument("--memory-of", nargs="+", help=argparse.SUPPRESS)
    given = command.parse_args(arguments)
    if given.prompt <= 2 * given.target:
        command.error(f"argument --prompt: found {given.prompt}, expected more than two targets, {2 * given.target}")
    check_device(command, given.device)
    check_backbone(command, given)
    check_throughput(command, given)
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def checked_sizes(given, **sizes):
    """The options for a comparison in float64: a small compact backbone, as a large one would need too much memory.

    Args:
        given: options; the copy has the sizes in `sizes`.
    """
    if given.backbone != "compact":
        sizes = {"hidden": 64, "layers": 2, **sizes}
    return argparse.Namespace(**{**vars(given), "backbone": "compact", "dtype": "float32", **sizes})


def _write_files(folder, given):
    """Write a catalogue whose words are one token each, and a tokenizer that knows these words.

    All titles have T tokens with their end, except that of the item `filler`. It is longer, so that prompts get their length.
    """
    rng = np.random.default_rng(0)
    special = [PAD, START, END_OF_TITLE, THOUGHT]
    words = [f"w{number}" for number in range(given.vocabulary - len(special))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(special + words)}, words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END_OF_TITLE,
        additional_special_tokens=[THOUGHT],
    ).save_pretrained(folder / "tokenizer")
    # The filler takes the tokens that are left when L - 1 (without the start token) is filled with whole titles.
    lengths = {"filler": given.target + (given.prompt - 1) % given.target}
    lengths.update({f"i{number}": given.target for number in range(given.items)})
    write_dataset(folder, {item: " ".join(rng.choice(words, length - 1)) for item, length in lengths.items()})


def write_dataset(folder, title_of):
    """Write the atomic files of a data set `made_up` into a folder: titles (dict item -> title), and a few interactions, which
    RecBole needs."""
    data, items = Path(folder) / "made_up", list(title_of)
    data.mkdir()
    titles = [f"{item}\t{title}" for item, title in title_of.items()]
    history = [f"user\t{items[step % len(items)]}\t{step}" for step in range(5)]
    (data / "made_up.item").write_text("\n".join(["item_id:token\ttitle:token", *titles]) + "\n")
    (data / "made_up.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *history]) + "\n")


def build_model(model_class, folder, device="cpu", **options):
    """Build a model with random weights on the data set `made_up` in `folder`. Returns its config, the model, the dataset."""
    config = Config(model_class, "made_up", config_dict={
        "data_path": str(folder), "state": "ERROR", "use_gpu": device == "cuda", "eval_args": _SPLIT, **options,
    })  # fmt: skip
    dataset = load_dataset(config)
    init_seed(config["seed"], True)
    return config, model_class(config, split(config, dataset)[0]._dataset).to(config["device"]), dataset


def build(model_class, given, **options):
    """Build a model on a catalogue of words of one token each.

    Args:
        model_class: a model class of recbole_flr.
        given: options; `vocabulary`, `target`, `prompt`, `items`, `hidden`, `layers`, `device`, `backbone` and `dtype` are read.
        options: further options of the model.

    Returns:
        RecBole's config, the model, and a function from item names (`i0`, `i1`, ..., `filler`) to their ids.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), given)
        config, model, dataset = build_model(model_class, folder, given.device, **{
            "MAX_ITEM_LIST_LENGTH": given.prompt // given.target, "max_title_tokens": 2 * given.target,
            "duplicate_titles": "share", "tokenizer": str(Path(folder) / "tokenizer"), "prompt": "compact",
            "compact_hidden_size": given.hidden, "compact_layers": given.layers,
            **model_options(given, vars(given).get("trainable") or "frozen"), **options,
        })  # fmt: skip
    return config, model, lambda names: dataset.token2id(dataset.iid_field, names)


def batch(given, model, ids, rows=None):
    """RecBole's batch of prompts of L tokens with targets of T tokens: `rows` of them, or else `given.batch`.

    Raises:
        AssertionError: the lengths are not those asked for.
    """
    length, rows = (given.prompt - 1) // given.target, rows or given.batch
    names = np.random.default_rng(1).integers(given.items, size=(rows, length)).astype(str)
    items = ids(np.char.add("i", names))
    first = np.full((rows, 1), ids("filler"))
    interaction = Interaction({
        model.ITEM_SEQ: torch.from_numpy(np.concatenate([first, items[:, 1:]], axis=1)),
        model.ITEM_SEQ_LEN: torch.full((rows,), length), model.POS_ITEM_ID: torch.from_numpy(items[:, 0]),
    }).to(model.device)  # fmt: skip
    found = [model.prompt_lengths(interaction)[0].item(), model.collator.targets(interaction[model.POS_ITEM_ID])[0].shape[1]]
    if found != [given.prompt, given.target]:
        raise AssertionError(f"prompt and target have {found} tokens, expected {[given.prompt, given.target]}")
    return interaction


# ---- the obvious mathematics -------------------------------------------------------------------------------------------


def think(lm, reasoner, prompt, mask, trunk=None):
    """Refine thoughts by N full passes of `trunk` (by default the trunk of `lm`), without a cache.

    Prompts [R, L, D] and their mask [R, L] -> FactorState.
    """
    trunk = trunk or lm.base_model
    thought = reasoner.initial.expand(len(prompt), -1)
    for _ in range(reasoner.num_refinements):
        text = continued(prompt, mask, thought.unsqueeze(1))
        hidden = trunk(**text).last_hidden_state
        scores = reasoner.step.scores(hidden, text["position_ids"])
        state = reasoner.step(scores, hidden[:, :-1], hidden[:, -1:], text["attention_mask"])
        thought = state.thought
    return state


def continued(prompt, mask, new):
    """Arguments of a transformers model for prompts [R, L, D] followed by new embeddings [R, S, D]."""
    mask = torch.cat([mask, mask.new_ones(new.shape[:2])], dim=1)
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    return dict(inputs_embeds=torch.cat([prompt, new], dim=1), attention_mask=mask, position_ids=positions, use_cache=False)


def in_float64(model, std):
    """Draw new weights with standard deviation `std`, and make the whole model compute in float64."""
    model.double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, Qwen2RMSNorm):  # rounds to float32, whatever it gets
                exact = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon).to(norm.weight)
                setattr(parent, name, exact.requires_grad_(False))  # weights are 1 in both
