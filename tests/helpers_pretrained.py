"""A tiny language model that was "pretrained" for a data set, for the models that are not trained themselves."""

import torch
from recbole.utils import init_seed
from transformers import AutoConfig, AutoModelForCausalLM

from recbole_flr.config import Config
from recbole_flr.data.loading import load_dataset, split
from recbole_flr.data.prompt import IGNORE, PAPER_HEAD, PAPER_TASK
from recbole_flr.model.backbone import growing, train_tokenizer
from recbole_flr.model.reasoner import Thought, read_prompt
from recbole_flr.registry import get_model


def title_loss(model, batch):
    """Cross entropy of the target's title behind the prompt and, for a model that writes one, its reasoning. A scalar."""
    prompts, backbone = model._prompts(batch), model.backbone
    ids, mask = prompts.ids, prompts.mask
    if type(model).__name__ == "CoT":
        with torch.no_grad():
            context = read_prompt(backbone, backbone.embed(ids), mask, shared=prompts.shared)
            tokens, written = model.write_thoughts(context, growing(context.cache))
        response = model.response.expand(len(ids), -1)
        ids = torch.cat([ids, tokens, response], 1)
        mask = torch.cat([mask, written, torch.ones_like(response, dtype=torch.bool)], 1)
    embeddings = backbone.embed(ids)
    context = read_prompt(backbone, embeddings[:, :-1], mask[:, :-1], shared=prompts.shared)
    titles, labels = model.collator.targets(batch[model.POS_ITEM_ID])
    real = labels != IGNORE
    states = model.title_states(Thought(context, embeddings[:, -1]), titles)
    return torch.nn.functional.cross_entropy(backbone.logits(states[real]), labels[real])


def pretrain(name, dataset, options, words, folder, steps=80):
    """Train a tiny language model for the prompts of a model, Base or CoT, on all training rows.

    Args:
        name: of the model.
        dataset: name of the data set.
        options: of the model, with data_path.
        words: texts of the catalogue.
        folder: where the language model and its tokenizer are saved.
        steps: of Adam.

    Returns:
        the folder as text, for the option `backbone`.
    """
    head = PAPER_HEAD.format(noun="item", task=PAPER_TASK.format(noun="item"))
    tokenizer = train_tokenizer([*words, head, head], 700)
    settings = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        initializer_range=0.1, num_key_value_heads=4, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = Config(name, dataset, config_dict={**options, "backbone": str(folder), "train_batch_size": 1000})
    init_seed(config["seed"], True)
    train, *_ = split(config, load_dataset(config))
    model = get_model(name)(config, train._dataset)
    batch, parameters = next(iter(train)), list(model.backbone.parameters())
    model.backbone.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        title_loss(model, batch).backward()
        optimizer.step()
    model.backbone.lm.save_pretrained(folder)
    return str(folder)
