"""What the JSON of a run must hold: `run.json` and the headers of its checkpoints. Another content gets one clear error."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recbole_flr.errors import CheckpointError

Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """JSON with some required keys; others are left alone. A text is no number here, and a bool is none either."""

    model_config = ConfigDict(strict=True)


class Options(Part):
    """`run.json`: the options of a run, of which two are needed to read the others."""

    model: str
    dataset: str


class Header(Part):
    """The header of each checkpoint."""

    meta: dict[str, Any]
    aliases: dict[str, str]


class Weights(Part):
    """What every checkpoint says about its weights."""

    data: str | None
    other: dict[str, Any]
    skipped: list[str]


class Record(Part):
    """What a stage has cost."""

    seconds: float
    peak_memory_bytes: int | None
    epochs: Count
    best_epoch: int | None


class State(Weights):
    """`last.safetensors`: a state from which a run can go on."""

    optimizer: dict[str, Any]
    random: dict[str, Any]
    next_epoch: Count
    stage: str
    cur_step: Count
    best_valid_score: float
    best_valid_result: dict[str, float] | None
    best_epoch: int | None
    record: Record
    records: dict[str, Record]
    results: list[Annotated[list, Field(min_length=3, max_length=3)]] | None = None  # [name, score, result]


def check_header(kind, content, path):
    """Refuse JSON that a run did not write.

    Args:
        kind: one of the classes above.
        content: what was read.
        path: of the file, for the message.

    Raises:
        CheckpointError: says what is missing or of another type.
    """
    try:
        kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "its content"
        raise CheckpointError(f"{path} is not what a run writes: {place}: {first['msg'].lower()}; start the run anew") from error
