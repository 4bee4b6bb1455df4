"""For the tests of the configuration: configurations as they can be compared, and configurations that are refused."""

import json

import pytest

from recbole_flr.config import Config
from recbole_flr.errors import ConfigError

FOUR = ["FLR", "SASRec", "GRU4Rec", "Caser"]


def refused(message, model="FLR", dataset="toys_demo", files=None, **options):
    """Checks that a Config is refused. Returns the message."""
    with pytest.raises(ConfigError, match=message) as caught:
        Config(model, dataset, files, options)
    return str(caught.value)


def values(config):
    """The final options in a form that can be compared."""
    return {name: str(value) if name in ("device", "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type") else value
            for name, value in config.final_config_dict.items()}


def round_trip(config):
    """The Config that is made again from the snapshot, as it is written to a file."""
    return Config(config_dict=json.loads(json.dumps(config.snapshot(), allow_nan=False)))
