"""Whether a pretrained model is there: a folder, the local cache of Hugging Face, or the hub.

An unreachable hub is noticed at once. transformers would try for almost a minute, and would name the first
file that it misses, which is the tokenizer's.
"""

from pathlib import Path

from recbole_flr.errors import ConfigError, first_line

SECONDS = 10  # to wait for the hub's answer


def check_model(name, option, expected):
    """Refuse the name of a model that is neither a folder nor in the cache nor on the hub.

    Args:
        name (str): folder or hub name.
        option (str): the option that it came from.
        expected (str): what would do instead, for the message.

    Raises:
        ConfigError: says where it looked.
    """
    try:
        if Path(name).is_dir():
            return
        is_file = Path(name).exists()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{option}: found {name!r}, which could not be loaded ({first_line(error)}); expected {expected}"
        ) from error
    if is_file or name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        what = "it is a file" if is_file else "there is no such folder"
        raise ConfigError(f"{option}: found {name!r}, which could not be loaded ({what}); expected {expected}")
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "tokenizer.json")):
            return
        if constants.HF_HUB_OFFLINE:
            raise ConfigError(
                f"{option}: found {name!r}, which is neither a folder nor in the cache of Hugging Face, and "
                f"HF_HUB_OFFLINE forbids to ask the hub; expected {expected}"
            )
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=SECONDS)
    except EntryNotFoundError:  # the repository is there; it may hold a tokenizer alone
        return
    except HFValidationError as error:
        raise ConfigError(
            f"{option}: found {name!r}, which is neither a folder nor a hub name ({first_line(error)}); expected {expected}"
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # the errors of several network libraries have no common base
        raise ConfigError(
            f"{option}: found {name!r}, which is neither a folder nor in the cache of Hugging Face, and the hub "
            f"does not give it ({first_line(error)}); expected {expected}"
        ) from error
