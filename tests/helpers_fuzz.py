"""For the fuzz test: random changes of options, of `run.json` and of the headers of safetensors files."""

import json
import random
import struct

VALUES = [  # what people and broken programs write where something else belongs
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    10**9,
    -(10**18),
    0.5,
    1.5,
    -0.1,
    1e30,
    1e-30,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "None",
    "null",
    "auto",
    "[1,2]",
    "{}",
    "full",
    "../x",
    "/proc/nope",
    "a b",
    "\x1b[31m",
    "\0",
    "ü",
    "積",
    "1e3",
    "nan",
    [],
    [1],
    ["x"],
    [None],
    {},
    {"x": 1},
    {"mode": "full"},
    {"distribution": "uniform"},
    {"item": ["title"]},
    [[]],
    "x" * 300,
    "[",
    "{'a'",
    "--",
    "=",
]
TEXTS = [
    "",
    "x",
    "-1",
    "0",
    "1",
    "2.5",
    "1e999",
    "nan",
    "[1,2]",
    "[5,",
    "{}",
    "{'a': 1}",
    "None",
    "true",
    "auto",
    "../x",
    "\x1b]0;x\x07",
    "!!python/object:os.system x",
    "&a [*a]",
    "2024-13-45",
    "0x10",
    "1_000",
    "Hit",
    "NDCG@5",
    "uni100",
    "a,b",
    "~",
    "'",
    '"',
]


def changed_json(rng, value):
    """A copy of JSON with one place changed: a value replaced, a key removed or renamed, an entry doubled."""
    value = json.loads(json.dumps(value))
    place, key = None, None
    parents = [value]
    for _ in range(rng.randrange(1, 6)):  # walk down to a random place
        here = parents[-1]
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else []
        if not keys:
            break
        place, key = here, rng.choice(list(keys))
        parents.append(here[key])
    if place is None or rng.random() < 0.02:
        return rng.choice(VALUES)
    how = rng.random()
    if how < 0.6:
        place[key] = rng.choice(VALUES)
    elif how < 0.8 and isinstance(place, dict):
        del place[key]
    elif isinstance(place, dict):
        place[f"{key}x"] = place.pop(key)
    else:
        place.append(place[key])
    return value


def changed_header(rng, data):
    """The bytes of a safetensors file with a changed header, or with some bytes changed, cut or added."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    how = rng.random()
    if how < 0.55:  # the JSON that the run itself wrote, inside the header
        inner = json.dumps(changed_json(rng, json.loads(header["__metadata__"]["json"])))
        header["__metadata__"]["json"] = inner
    elif how < 0.8:
        header = changed_json(rng, header)
    elif how < 0.9:
        cut = rng.randrange(len(data))
        return data[:cut] + bytes(rng.randrange(256) for _ in range(rng.randrange(3))) + data[cut + rng.randrange(1, 9) :]
    else:
        return data[: rng.randrange(len(data))]
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def changed_words(rng, names):
    """Words of a command line: a few options with random values."""
    words = []
    for name in rng.sample(names, rng.randrange(1, 4)):
        value = rng.choice(TEXTS) if rng.random() < 0.7 else json.dumps(rng.choice(VALUES))
        words.append(f"--{name}={value}" if rng.random() < 0.95 else f"--{name}")
    return words


def seeded(seed, number):
    """A generator for one change: the same for the same seed and number."""
    return random.Random(f"{seed} {number}")
