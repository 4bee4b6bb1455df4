"""Options of FLRMix whose values must fit together."""

from recbole_flr.errors import ConfigError
from recbole_flr.model.memory import TABLES


def text_kind(config, reads_text):
    """The option `item_text`, with what `auto` stands for.

    Raises:
        ConfigError: if the items would have neither ids nor text, or there is no backbone to take the text from.
    """
    kind = config["item_text"]
    if kind == "auto":
        kind = "backbone" if reads_text else "words"
    if kind == "backbone" and not reads_text:
        raise ConfigError("item_text: found backbone, and backbone items, which reads no text; expected words, none or a sentence "
                          "encoder, or another backbone")
    if kind == "none" and not config["use_ids"]:
        raise ConfigError("use_ids: found False, and item_text none; expected at least one of them: an item needs a vector")
    return kind


def ranking_kind(config, reads_text):
    """The option `rank`.

    Raises:
        ConfigError: if it needs titles that the model does not write, or more beams.
    """
    rank = config["rank"]
    if rank != "retrieve" and not reads_text:
        raise ConfigError(f"rank: found {rank}, and backbone items, which writes no titles; expected retrieve, or --backbone=compact "
                          "or a language model of Hugging Face")
    if rank != "retrieve" and not config["title_loss_weight"]:
        raise ConfigError(f"rank: found {rank}, and title_loss_weight 0; expected a weight above 0: nothing else teaches the model "
                          "to write titles")
    if rank == "write":
        from recbole_flr.model.titles import check_best_titles

        check_best_titles(config)
    return rank


def table_names(given):
    """The option `memory` -> names of tables, in their order.

    Raises:
        ConfigError: for a name that is no table.
    """
    names = [] if given is None else [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    if not all(isinstance(name, str) and name in TABLES for name in names):
        raise ConfigError(f"memory: found {given!r}, expected a list of {', '.join(TABLES)}, or null")
    return [name for name in TABLES if name in names]
