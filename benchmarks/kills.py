"""Kills runs and conversions at random moments, goes on with them, and compares what comes out with a run that was not killed.

    python -m benchmarks.kills --kills=20 --seed=1

Each kill is a SIGKILL to a process of its own, at a random moment of one stage of the training. `--resume` then goes on with the
run. Its metrics and its weights must be exactly those of the run that was not killed. A run that was killed before it first saved
is started again; the table counts these. A conversion is killed at a random moment of its whole time. Then there must be no data
set or a whole one, and the next conversion must give the same files and leave no temporary folder.

The processes are forks of one that has imported everything, so a kill costs a second or two and not ten. It needs Linux or macOS.
"""

import gzip
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from benchmarks.harness import parser, surroundings, write_json
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
    "SASRec": (["--model=SASRec", *(word.replace("epochs=3", "epochs=30") for word in SMALL)], "epoch 0 training"),
}
CONVERTER = "converter"


def run_process(function, folder):
    """Start a process in a folder; what it prints goes to the file `out` there. Returns the process."""
    def work():
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


def whole(function, folder):
    """Run a process to its end. Returns the seconds.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    process = run_process(function, folder)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"status {process.exitcode}: {(folder / 'out').read_text()[-2000:]}")
    return time.perf_counter() - start


def wait_for(text, folder, process):
    """Wait until a process has printed a text, or has ended. Returns whether it has printed it."""
    out = folder / "out"
    while process.is_alive():
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


def kill_runs(root, words, marker, kills, rng):
    """Kill a run at random moments of one stage, and go on with it.

    Returns:
        dict: `kills`, `before_first_save`, `equal` (runs whose metrics and weights are those of the run that was not killed).
    """
    reference = root / "reference"
    reference.mkdir()
    begin = time.perf_counter()
    process = run_process(train(words), reference)
    wait_for(marker, reference, process)
    reached = time.perf_counter() - begin
    process.join()
    seconds = _stage_seconds(reference, marker, time.perf_counter() - begin - reached)
    expected = outcome(reference)
    found = {"kills": kills, "before_first_save": 0, "equal": 0}
    for number in range(kills):
        folder = root / str(number)
        folder.mkdir()
        process = run_process(train(words), folder)
        if wait_for(marker, folder, process):
            time.sleep(rng.random() * seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        runs = list((folder / "saved").glob("*"))
        if runs and (runs[0] / "last.safetensors").is_file():
            whole(train([f"--resume={runs[0]}", words[0]]), folder)
        else:
            found["before_first_save"] += 1
            shutil.rmtree(folder / "saved", ignore_errors=True)
            whole(train(words), folder)
        found["equal"] += outcome(folder) == expected
        shutil.rmtree(folder)
    shutil.rmtree(reference)
    return found


def _stage_seconds(folder, marker, rest):
    """How long the stage took whose kills begin at the marker; the rest of the run for a model without stages."""
    run, = (folder / "saved").iterdir()
    stages = {stage["name"]: stage["seconds"] for stage in json.loads((run / "result.json").read_text())["stages"]}
    return stages.get(marker.removeprefix(": "), rest)


def kill_conversions(root, kills, rng):
    """Kill the converter at random moments; the fields are those of :func:`kill_runs`."""
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
    found = {"kills": kills, "before_first_save": 0, "equal": 0}
    for number in range(kills):
        folder = root / str(number)
        folder.mkdir()
        process = run_process(call, folder)
        time.sleep(rng.random() * seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        there = (folder / "dataset" / "d").is_dir()
        intact = not there or files(folder) == expected
        found["before_first_save"] += not there
        whole(call, folder)
        left = [path.name for path in (folder / "dataset").iterdir() if path.name != "d"]
        found["equal"] += intact and files(folder) == expected and not left
        shutil.rmtree(folder)
    return found


def main(arguments=None):
    """The command line."""
    options = parser("benchmarks.kills", __doc__, {
        "kills": (20, 1, "kills of each stage, and of the converter"), "seed": (1, 0, "seed of the moments"),
    })
    options.add_argument("--what", nargs="*", choices=[*RUNS, CONVERTER], help="what is killed (default: everything)")
    given = options.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    import recbole_flr.model.flr
    import recbole_flr.model.flrmix
    import recbole_flr.quick_start  # noqa: F401: now, so that the forks need not

    torch.set_num_threads(1)
    rng, results = random.Random(given.seed), {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / "data", users=16, items=40)
        for what in given.what or [*RUNS, CONVERTER]:
            root = Path(folder) / str(len(results))
            root.mkdir()
            if what == CONVERTER:
                results[what] = kill_conversions(root, given.kills, rng)
            else:
                words, marker = RUNS[what]
                results[what] = kill_runs(root, [f"--data_path={data}", *words], marker, given.kills, rng)
            print(f"{what}: {results[what]}", file=sys.stderr, flush=True)
    print("| killed | kills | before anything was saved | equal to the run that was not killed |\n|---|---|---|---|")
    for what, found in results.items():
        print(f"| {what} | {found['kills']} | {found['before_first_save']} | {found['equal']} |")
    write_json(given.json, {"seed": given.seed, "results": results, "surroundings": surroundings()})
    return 0 if all(found["equal"] == found["kills"] for found in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
