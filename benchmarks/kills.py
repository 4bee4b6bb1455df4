"""Kills runs and conversions at random moments, goes on with them, and compares what comes out with a run that was not killed.

    python -m benchmarks.kills --kills=20 --seed=1
    python -m benchmarks.kills --kills=10 --seed=1 --ranks=2 --what "FLR, warmup" "FLR, sft" "FLR, grpo" --progress kills.json

Each kill is a SIGKILL to a process of its own, at a random moment of one stage of the training. `--resume` then goes on with the
run. Its metrics and its weights must be exactly those of the run that was not killed. A run that was killed before it first saved
is started again; the table counts these. A conversion is killed at a random moment of its whole time. Then there must be no data
set or a whole one, and the next conversion must give the same files and leave no temporary folder.

With `--ranks` a run has so many processes, which are all killed. Its state is then resumed twice: by as many processes, which
must come to exactly the same, and by one. That one draws other random numbers, so its last epochs differ. But nothing may be
lost: what the killed run had saved must be exactly what the other run had at that point, and each stage must come to all of its
epochs.

With `--progress FILE` the results so far are written there after each kill, and the same command goes on behind the last one. The
moment of a kill depends on the seed, on what is killed and on the number of the kill alone.

The processes are forks of one that has imported everything, so a kill costs a second or two and not ten. It needs Linux or macOS.
"""

import gzip
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from benchmarks.harness import parser, surroundings, write_json
from benchmarks.progress import Progress
from benchmarks.recbole_models import write_dataset

SMALL = ["--dataset=every", "--show_progress=False", "--epochs=3", "--train_batch_size=32", "--eval_batch_size=64",
         "--use_gpu=False"]
TINY_LM = ["--compact_vocab_size=320", "--compact_hidden_size=16", "--compact_heads=2", "--compact_layers=1", "--warmup_epochs=3",
           "--pack_length=64", "--grpo_epochs=2", "--group_size=3", "--grpo_stopping_step=5", "--num_beams=10"]
RUNS = {  # what is killed -> the options of the run, and the line of its log with which the moments of the kills begin
    "FLR, warmup": (["--model=FLR", *TINY_LM, *SMALL], ": warmup"),
    "FLR, sft": (["--model=FLR", *TINY_LM, *SMALL], ": sft"),
    "FLR, grpo": (["--model=FLR", *TINY_LM, *SMALL], ": grpo"),
    "FLRMix, sft": (["--model=FLRMix", "--hidden_size=16", "--num_factors=2", *SMALL], ": sft"),
    "SASRec": (["--model=SASRec", *(word.replace("epochs=3", "epochs=30") for word in SMALL), "--stopping_step=30"],
               "epoch 0 training"),  # with another number of processes, early stopping would end it after another epoch
}
CONVERTER = "converter"


class Ranks:
    """A run of one process or of several, which torchrun would start.

    Args:
        function: what each process calls; it returns the exit status.
        folder: in which the processes work. What they print goes to the file `out` there.
        count: number of processes.
    """

    def __init__(self, function, folder, count=1):
        self.folder, environment, self._store = folder, {}, None
        if count > 1:
            from torch.distributed import TCPStore

            self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
            environment = {"WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": self._store.port,
                           "TORCHELASTIC_USE_AGENT_STORE": True}
        self.processes = [
            run_process(function, folder, environment and {**environment, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(count)
        ]

    def is_alive(self):
        """Whether the first process runs."""
        return self.processes[0].is_alive()

    def kill(self):
        """SIGKILL to all."""
        for process in self.processes:
            process.kill()  # nothing happens if it has ended
        self.join()

    def join(self):
        """Wait for the end of all. Returns the worst exit status."""
        for process in self.processes:
            process.join()
        return max(abs(process.exitcode) for process in self.processes)


def run_process(function, folder, environment):
    """Start a process in a folder, with further variables of the environment. Returns the process."""
    def work():
        os.environ.update({name: str(value) for name, value in environment.items()})
        os.chdir(folder)
        with open("out", "a", buffering=1) as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            with redirect_stdout(out), redirect_stderr(out):
                status = function()
        os._exit(status or 0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def whole(function, folder, ranks=1):
    """Make a run to its end. Returns the seconds.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    status = Ranks(function, folder, ranks).join()
    if status:
        raise RuntimeError(f"status {status}: {(folder / 'out').read_text()[-2000:]}")
    return time.perf_counter() - start


def wait_for(text, run):
    """Wait until a run has printed a text, or has ended. Returns whether it has printed it."""
    out = run.folder / "out"
    while run.is_alive():
        if out.is_file() and text in out.read_text(errors="replace"):
            return True
        time.sleep(0.002)
    return False


def train(words):
    """A function that trains, for a process of its own."""
    def call():
        from recbole_flr.command import main

        return main(words)

    return call


def outcome(folder):
    """What a run came to: its metrics and its weights, in a form that `==` compares."""
    from recbole_flr.training import checkpoint

    run, = (folder / "saved").iterdir()
    result = json.loads((run / "result.json").read_text())
    tensors, _ = checkpoint.read(run / checkpoint.BEST)
    stages = [(stage["name"], stage["best_valid_result"], stage["test_result"]) for stage in result["stages"]]
    return stages, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def saved_so_far(folder):
    """What a killed run had saved: name of a stage -> its validation curve, and the number of epochs that were trained.

    The stage in progress is the last one.
    """
    from recbole_flr.training import checkpoint

    _, meta = checkpoint.read(folder / checkpoint.LAST)
    curves = {name: record["curve"] for name, record in meta["records"].items()}
    curves[meta["stage"]] = meta["record"]["curve"]
    return curves, meta["next_epoch"]


def nothing_lost(saved, run, reference):
    """Whether a resumed run has what a killed run had saved, and all epochs of the run that was not killed.

    Args:
        saved: from :func:`saved_so_far`, at the kill.
        run, reference: folders of the resumed run and of the one that was not killed.
    """
    stages, expected = ({stage["name"]: stage for stage in json.loads((folder / "result.json").read_text())["stages"]}
                        for folder in (run, reference))
    curves, trained = saved
    kept = all(each[name]["curve"][:len(curve)] == curve for each in (stages, expected) for name, curve in curves.items())
    return kept and stages.keys() == expected.keys() and trained <= expected[list(curves)[-1]]["epochs"] and all(
        stages[name]["epochs"] == expected[name]["epochs"] for name in expected)


def kill_runs(root, what, words, marker, kills, progress, ranks=1):
    """Kill a run at random moments of one stage, and go on with it. Kills that `progress` has are not repeated.

    Returns:
        dict, also kept in `progress`: `kills`, `before_first_save`, `equal` (runs whose metrics and weights are those of the run that
        was not killed), and with several ranks `on_one` (kills after the first save whose run was resumed by one process, and lost
        nothing).
    """
    found = progress.of(what, ranks > 1)
    if found["kills"] >= kills:
        return found
    reference = root / "reference"
    reference.mkdir()
    begin = time.perf_counter()
    run = Ranks(train(words), reference, ranks)
    wait_for(marker, run)
    reached = time.perf_counter() - begin
    run.join()
    seconds = _stage_seconds(reference, marker, time.perf_counter() - begin - reached)
    expected = outcome(reference)
    for number in range(found["kills"], kills):
        folder, more = root / str(number), {}
        folder.mkdir()
        run = Ranks(train(words), folder, ranks)
        if wait_for(marker, run):
            time.sleep(progress.moment(what, number) * seconds)
        run.kill()
        runs = list((folder / "saved").glob("*"))
        if runs and (runs[0] / "last.safetensors").is_file():
            if ranks > 1:
                more["on_one"] = _on_one(folder, runs[0], reference, words)
            whole(train([f"--resume={runs[0]}", words[0]]), folder, ranks)
        else:
            more["before_first_save"] = True
            shutil.rmtree(folder / "saved", ignore_errors=True)
            whole(train(words), folder, ranks)
        progress.count(what, equal=outcome(folder) == expected, **more)
        shutil.rmtree(folder)
    shutil.rmtree(reference)
    return found


def _on_one(folder, run, reference, words):
    """Resume a copy of a killed run by one process. Returns whether nothing was lost."""
    copy = folder / "one"
    shutil.copytree(folder / "saved", copy / "saved")
    own = copy / "saved" / run.name
    saved = saved_so_far(own)
    whole(train([f"--resume={own}", words[0]]), copy)
    kept = nothing_lost(saved, own, next((reference / "saved").iterdir()))
    shutil.rmtree(copy)
    return kept


def _stage_seconds(folder, marker, rest):
    """How long the stage took whose kills begin at the marker; the rest of the run for a model without stages."""
    run, = (folder / "saved").iterdir()
    stages = {stage["name"]: stage["seconds"] for stage in json.loads((run / "result.json").read_text())["stages"]}
    return stages.get(marker.removeprefix(": "), rest)


def kill_conversions(root, kills, progress):
    """Kill the converter at random moments; the fields are those of :func:`kill_runs`."""
    found = progress.of(CONVERTER, False)
    if found["kills"] >= kills:
        return found
    from dataset_scripts import convert, toys_demo

    toys_demo.prepare(root / "raw")
    raw = root / "raw" / toys_demo.NAME / "raw"
    log = gzip.decompress((raw / "reviews.json.gz").read_bytes())
    (root / "reviews.json").write_bytes(log * 20)  # repeats are allowed; a longer log gives more moments
    words = ["--reviews", str(root / "reviews.json"), "--meta", str(raw / "meta.json.gz"), "--name", "d", "--min-items", "0"]

    def call():
        return convert.main(words)

    def files(folder):
        return {path.name: path.read_bytes() for path in (folder / "dataset" / "d").iterdir()}

    reference = root / "reference"
    reference.mkdir()
    seconds, expected = whole(call, reference), files(reference)
    for number in range(found["kills"], kills):
        folder = root / str(number)
        folder.mkdir()
        run = Ranks(call, folder)
        time.sleep(progress.moment(CONVERTER, number) * seconds)
        run.kill()
        there = (folder / "dataset" / "d").is_dir()
        intact = not there or files(folder) == expected
        whole(call, folder)
        left = [path.name for path in (folder / "dataset").iterdir() if path.name != "d"]
        progress.count(CONVERTER, equal=intact and files(folder) == expected and not left, before_first_save=not there)
        shutil.rmtree(folder)
    return found


def main(arguments=None):
    """The command line."""
    options = parser("benchmarks.kills", __doc__, {
        "kills": (20, 1, "kills of each stage, and of the converter"), "seed": (1, 0, "seed of the moments"),
        "ranks": (1, 1, "processes of a run"),
    })
    options.add_argument("--what", nargs="*", choices=[*RUNS, CONVERTER], help="what is killed (default: everything)")
    options.add_argument("--progress", type=Path, metavar="FILE",
                         help="keep the results so far there; the same command goes on with them")
    given = options.parse_args(arguments)
    try:
        progress = Progress(given.progress, given.seed, given.ranks)
    except ValueError as error:
        options.error(f"argument --progress: {error}")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    import recbole_flr.model.flr
    import recbole_flr.model.flrmix
    import recbole_flr.quick_start  # noqa: F401 (imported now, so that the forks need not)

    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / "data", users=16, items=40)
        for what in given.what or [*RUNS, CONVERTER]:
            root = Path(folder) / str(len(results))
            root.mkdir()
            if what == CONVERTER:
                results[what] = kill_conversions(root, given.kills, progress)
            else:
                words, marker = RUNS[what]
                results[what] = kill_runs(root, what, [f"--data_path={data}", *words], marker, given.kills, progress, given.ranks)
    several = given.ranks > 1
    print("| killed | kills | before anything was saved | equal to the run that was not killed |"
          + (" resumed by one process: nothing lost |" if several else "") + f"\n|{'---|' * (5 if several else 4)}")
    for what, found in results.items():
        by_one = f"{found['on_one']} of {found['kills'] - found['before_first_save']}" if "on_one" in found else "-"
        print(f"| {what} | {found['kills']} | {found['before_first_save']} | {found['equal']} |" + (f" {by_one} |" if several else ""))
    write_json(given.json, {"seed": given.seed, "results": results, "surroundings": surroundings()})
    lost = [each for each in results.values() if each["equal"] < each["kills"]
            or each.get("on_one", each["kills"]) < each["kills"] - each["before_first_save"]]
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
