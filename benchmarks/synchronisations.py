"""Where a training step and a search wait for the device, and what the device does meanwhile.

    python -m benchmarks.synchronisations --device=cuda --backbone=qwen2.5-1.5b --dtype=bfloat16 --profile=FOLDER

The host waits for the device where it needs a number that the device has computed: `.item()`, `bool(tensor)`, a mask as an index.
Once in a step costs little. Inside a loop, the device has nothing to do between two turns. The benchmark counts such places in

- a step of the supervised stage: loss, backward pass, clipped gradients, AdamW;
- a step of the stage `grpo`, with the rollout;
- reading prompts, thinking, the search for titles, and the scores of all items.

RecBole's own loop adds two waits to each step: it
reads the loss, and checks that it is finite.

On CUDA, torch itself reports them (`torch.cuda.set_sync_debug_mode`). On a CPU, operators are counted that would wait on CUDA,
because the shape of their result, or a number for Python, depends on the data. (A CPU has nothing to do for `.cpu()` and
`.tolist()`, so these are not seen there.) Both name the line of the package.

Loops: a step is repeated with one more refinement; the stage `grpo` with a group twice as large; the ranking with twice as many
users. The column `larger` has the count of that. If it is the same, nothing waits inside these loops. The search is a loop
itself: the table gives its waits and the passes of the backbone.

With --profile, torch.profiler runs on each part. FOLDER gets a table of the operators of each part.
"""

import sys
import traceback
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.decoding import make_models
from benchmarks.harness import ROOT, add_device, check_device, parser, surroundings, synchronize, write_json
from benchmarks.made_up import histories, interaction
from benchmarks.shapes import add_backbone
from recbole_flr.data.batching import Repeat
from recbole_flr.decoding import item_scores
from recbole_flr.model.backbone import Backbone
from recbole_flr.training.reinforcement import LatentGRPO

WAITING = {  # operators whose result has a shape, or is a number, that depends on the data
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select", "unique2", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "equal", "histc",
}


class WouldWait(TorchDispatchMode):
    """Counts, on a CPU, the operators that would wait on CUDA, by the line of the package that asked for them.

    torch's optimizers are left out: they count their steps on the CPU, whatever the device of the weights.

    Attributes:
        places: Counter, place -> number.
    """

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if waits(operator, args, kwargs):
            if not any("/torch/optim/" in frame.filename for frame in traceback.extract_stack(limit=8)):
                self.places[place()] += 1
        return operator(*args, **kwargs)


def waits(operator, args, kwargs):
    """Whether an operator, with these arguments, would make the host wait for a GPU."""
    name = operator.overloadpacket.__name__
    if name in WAITING:
        return True
    if name == "repeat_interleave":
        return operator._overloadname == "Tensor" and kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):  # a mask is turned into the places where it is true
        masks = any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
        filled = name != "index" and len(args) > 2 and args[2].dim() == 0  # done by masked_fill, which does not wait
        return masks and not filled
    return False


def place():
    """The innermost line of the call stack that is in recbole_flr, or else in the benchmarks, as text."""
    frames = [frame for frame in traceback.extract_stack()[:-2]
              if Path(frame.filename).is_relative_to(ROOT) and "site-packages" not in frame.filename]  # .venv may be in ROOT
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT / "recbole_flr")]
    found = (own or frames)[-1]
    return f"{Path(found.filename).relative_to(ROOT)}:{found.lineno} {found.name}: {found.line}"


@contextmanager
def counted(device):
    """Inside the block, waits are counted. Yields a Counter, place -> number."""
    if device == "cpu":
        with WouldWait() as mode:
            yield mode.places
        return
    places = Counter()

    def keep(message, category, filename, lineno, file=None, line=None):
        if "called a synchronizing" in str(message):
            places[place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = keep
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


# what is looked at


def parts_of(model, stage, rows, optimizer):
    """name -> function without arguments, and the same of a larger one.

    Args:
        model: FLR.
        stage: LatentGRPO of it.
        rows: [2 B, H + 1] histories of users; the first half is what is looked at.
        optimizer: of all parameters.

    Returns:
        dict: name -> (function, function of the larger one or None, what is larger).
    """
    half, double = (interaction(model, rows[:count]) for count in (len(rows) // 2, len(rows)))

    def step(loss):
        model.train()
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def more_refinements():
        with patch.object(model.reasoner, "num_refinements", model.reasoner.num_refinements + 1):
            step(lambda: model.calculate_loss(half))

    def larger_group():
        with patch.object(stage, "group_size", 2 * stage.group_size):
            step(lambda: stage.loss(Repeat(half, True)))

    @torch.no_grad()
    def read(batch):
        return model.eval().read_context(batch)

    def ranking(batch):
        thought = model.think(read(batch))
        with torch.no_grad():
            beams = model.decode(thought)
        without = torch.no_grad()
        return {
            "read prompts": lambda: read(batch), "think": without(lambda: model.think(thought.context)),
            "search": without(lambda: model.decode(thought)),
            "scores of items": lambda: item_scores(beams, model.trie, model.n_items),
        }

    found = {
        "supervised step": (lambda: step(lambda: model.calculate_loss(half)), more_refinements, "one more refinement"),
        "grpo step": (lambda: step(lambda: stage.loss(Repeat(half, True))), larger_group, "a group twice as large"),
    }
    of_half, of_double = ranking(half), ranking(double)
    found.update({name: (of_half[name], of_double[name], "twice as many users") for name in of_half})
    return found


class Passes:
    """Counts the passes of a backbone, within :func:`unittest.mock.patch.object`."""

    def __init__(self):
        self.number, self._whole = 0, Backbone.forward

    def __call__(self, *args, **kwargs):
        self.number += 1
        return self._whole(*args, **kwargs)


def count(function, device):
    """Waits and passes of a call: dict with `waits`, `passes` and `places` (list of [place, number], the most frequent first)."""
    function()  # so that what is set up once is not counted
    synchronize(device)
    passes = Passes()
    with ExitStack() as stack:
        stack.enter_context(patch.object(Backbone, "forward", lambda self, *args, **kwargs: passes(self, *args, **kwargs)))
        places = stack.enter_context(counted(device))
        function()
    return {"waits": sum(places.values()), "passes": passes.number, "places": [list(each) for each in places.most_common()]}


def profile(function, device, path):
    """Run torch.profiler on a call, and write its table of operators to a file."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        function()
        synchronize(device)
    table = found.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=40, max_name_column_width=60)
    path.write_text(table + "\n")


# command line


def parse(arguments):
    """Parse a command line. Returns the options."""
    command = parser("benchmarks.synchronisations", __doc__, {
        "titles": (2000, 50, "titles of the catalogue"), "users": (8, 1, "rows of a batch"), "beams": (10, 1, "beams"),
        "warmup": (10, 1, "training steps of the compact backbone"),
        "threads": (None, 1, "threads of torch (default: torch's own choice)"),
    })  # fmt: skip
    add_device(command)
    add_backbone(command)
    command.add_argument("--profile", type=Path, metavar="FOLDER", help="also write tables of torch.profiler to this folder")
    given = command.parse_args(arguments)
    check_device(command, given.device)
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def main(arguments=None):
    """Count, print the tables. Returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="recbole")
    _, model, texts, config = make_models(given)
    stage = LatentGRPO(model, config)
    stage.reference = stage.model.reasoner
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = parts_of(model, stage, histories(texts, 2 * given.users, seed=5), torch.optim.AdamW(trained, 1e-6))
    results, rows = {}, []
    for name, (function, larger, what) in parts.items():
        results[name] = one = {**count(function, given.device), "larger": {"what": what, **count(larger, given.device)}}
        rows.append([name, one["waits"], one["passes"], one["larger"]["waits"], one["larger"]["passes"], what])
        if given.profile:
            given.profile.mkdir(parents=True, exist_ok=True)
            profile(function, given.device, given.profile / f"{name.replace(' ', '-')}.txt")
    print(tabulate(rows, ["part", "waits", "passes", "waits, larger", "passes", "larger"]))
    for name, one in results.items():
        print(f"\n{name}:")
        for where, number in one["places"]:
            print(f"{number:5d}  {where}")
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "profile")}
    command = " ".join(["python -m benchmarks.synchronisations", *arguments])
    report = {"command": command, "settings": settings, **surroundings(device=given.device), "results": results}
    write_json(given.json, report)
    return report


if __name__ == "__main__":
    main()
