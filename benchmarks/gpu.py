"""All figures of a GPU with one command: each benchmark in a process of its own, one after another, and one page of the results.

    python -m benchmarks.gpu --out FOLDER
    python -m benchmarks.gpu --out FOLDER --device=cpu --tiny

It measures, for the shape of Qwen2.5-1.5B with random weights and for SmolLM2 with its own (`benchmarks.shapes`):

- `training`: a step of the supervised stage, in full and with LoRA: tokens a second, share of the card's peak, memory, largest
  batch;
- `grpo`: a step of the reinforcement stage, the same figures;
- `decoding`: users ranked a second with 10 and 20 beams, memory of 128 users, and how many fit;
- `scale`: the search with catalogues of 1,000 to 1,000,000 titles;
- `synchronisations`: where a step and a search wait for the device, and torch.profiler's tables.

A part that fails is reported, and the others go on. A part that runs out of memory is tried again with half of its rows. The
command can be given again: parts that are finished, with the same options and the same commit, are kept. FOLDER gets `gpu.md`,
`gpu.json`, and for each part NAME.json, NAME.log and the folder NAME of its profiles. `--tiny` runs the same code with a tiny
backbone and tiny sizes: it tests the command, and its figures mean nothing."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from tabulate import tabulate

from benchmarks.harness import ROOT, add_device, check_device, surroundings, write_json

BACKBONES = ("qwen2.5-1.5b", "smollm2-135m")
TINY = {  # module -> options that make it take seconds
    "training": "--prompt=20 --target=4 --items=5 --vocabulary=60 --repeats=1",
    "grpo": "--prompt=20 --target=4 --items=5 --vocabulary=60 --repeats=1 --group-size=3",
    "decoding": "--titles=60 --repeats=1",
    "scale": "--sizes=20,40 --users=3 --beams=4 --repeats=1",
    "synchronisations": "--titles=60 --users=2 --beams=4",
}
ROWS = {"training": "--batch", "grpo": "--batch", "decoding": "--users", "scale": "--users", "synchronisations": "--users"}
HALVINGS = 6  # of the rows of a part that runs out of memory


def parts(given):
    """name of a part -> module and words of its command line.

    Args:
        given: options `device`, `tiny` and `peak_tflops`.
    """
    found = {}
    for backbone in ("tiny",) if given.tiny else BACKBONES:
        def add(name, module, *words, backbone=backbone):
            throughput = module in ("training", "grpo", "decoding")
            limit = ["--largest-batch=4" if given.tiny else "--largest-batch=4096"]
            limit += ["--memory-limit=8"] if given.tiny and given.device == "cpu" else []
            peak = [f"--peak-tflops={given.peak_tflops}"] if given.peak_tflops else []
            found[f"{name}-{backbone}"] = module, [
                f"--device={given.device}", f"--backbone={backbone}", *words, *(limit + peak if throughput else []),
                *(TINY[module].split() if given.tiny else ()),
            ]

        rows = 2 if given.tiny else 32
        for trainable, dtype in (("full", "bfloat16"), ("full", "mixed"), ("lora", "bfloat16")):
            add(f"training-{trainable}-{dtype}", "training", f"--batch={rows}", f"--dtype={dtype}", f"--trainable={trainable}")
        if not given.tiny:  # compiling takes minutes, whatever the size
            add("training-compiled", "training", f"--batch={rows}", "--dtype=bfloat16", "--compile")
        add("grpo", "grpo", f"--batch={rows}", "--dtype=bfloat16")
        for beams in (4, 5) if given.tiny else (10, 20):
            add(f"decoding-{beams}", "decoding", f"--users={2 if given.tiny else 128}", f"--beams={beams}", "--dtype=bfloat16")
        add("synchronisations", "synchronisations", "--dtype=bfloat16")
        add("scale", "scale", "--users=32", "--dtype=bfloat16")
    return found


def out_of_memory(log):
    """Whether a part ended because the device has no more memory."""
    return "OutOfMemoryError" in log


def halved(module, words):
    """The command line with half of the rows; None if there is one row."""
    option = ROWS[module] + "="
    rows = int(next(word for word in reversed(words) if word.startswith(option)).removeprefix(option)) if any(
        word.startswith(option) for word in words) else 8
    return None if rows < 2 else [*(word for word in words if not word.startswith(option)), f"{option}{rows // 2}"]


def run_part(name, module, words, out, commit):
    """Run a part, unless it is finished.

    Args:
        name, module, words: of :func:`parts`.
        out: Path of the folder.
        commit: what the benchmarks are now; a part of another commit is run again. With "+" at its end the code has changed since, and
            every part is run again.

    Returns:
        dict: `module`, `words`, `run_words` (with fewer rows, if the memory was too small), `commit`, `seconds`, `error` (None, or the
        last line of the log), and `report` (None after an error).
    """
    path, log = out / f"{name}.json", out / f"{name}.log"
    try:
        kept = json.loads(path.read_text())
        if kept["words"] == words and kept["commit"] == commit and not commit.endswith("+") and kept["error"] is None:
            print(f"{name}: finished before", flush=True)
            return kept
    except (OSError, ValueError, KeyError):
        pass
    start, given, report = time.perf_counter(), words, out / f"{name}.report.json"
    for attempt in range(HALVINGS):
        report.unlink(missing_ok=True)
        print(f"{name}: python -m benchmarks.{module} {' '.join(given)}", flush=True)
        profiles = [f"--profile={out / name}"] if module == "synchronisations" else []
        with open(log, "w") as file:
            command = [sys.executable, "-m", f"benchmarks.{module}", *given, *profiles, f"--json={report}"]
            status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
        said = log.read_text(errors="replace")
        smaller = halved(module, given)
        if status == 0 or not out_of_memory(said) or smaller is None or attempt == HALVINGS - 1:
            break
        given = smaller
    error = None if status == 0 else ((said.strip().splitlines() or [""])[-1][:300] or f"status {status}")
    found = {"module": module, "words": words, "run_words": given, "commit": commit,
             "seconds": round(time.perf_counter() - start, 1), "error": error, "report": json.loads(report.read_text()) if status == 0 else None}
    report.unlink(missing_ok=True)
    temporary = path.with_suffix(".tmp")
    write_json(temporary, found)
    temporary.replace(path)
    print(f"{name}: {'finished' if error is None else 'FAILED: ' + error} after {found['seconds']:.0f} s", flush=True)
    return found


# the page


def speed_rows(name, found):
    """Rows of the table of throughput for a part: name, rows, rows a second, tokens a second, TFLOP/s, share, GiB, largest."""
    speed = found["report"]["throughput"]
    several = speed if "rows" not in speed else {"": speed}
    for kind, one in several.items():
        label = f"{name} {kind}".strip()
        for number, each in enumerate((one, one["at_largest"])):
            if each:
                yield [
                    label if number == 0 else f"{label}, largest batch", each["rows"], f"{each['rows_a_second']:,.1f}",
                    f"{each['tokens_a_second']:,.0f}" if each["tokens_a_second"] else "-", f"{each['tflops_a_second']:.3g}",
                    f"{each['share_of_peak']:.1%}" if each["share_of_peak"] else "-", f"{each['peak_bytes'] / 2**30:.2f}",
                    "-" if one["largest_batch"] is None or number else one["largest_batch"],
                ]


def page(results, machine, tiny):
    """The page `gpu.md`.

    Args:
        results (dict): name -> what :func:`run_part` gives.
        machine (dict): from :func:`benchmarks.harness.surroundings`.
        tiny: whether the figures mean nothing.
    """
    table = lambda rows, headers: tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
    good = {name: one for name, one in results.items() if one["error"] is None}
    lines = ["# Figures of a GPU", ""]
    if tiny:
        lines += ["**A test of the command with tiny sizes. The figures mean nothing.**", ""]
    memory = machine.get("gpu_memory_bytes")
    gpu = f"{machine['gpu']} ({memory / 2**30:.0f} GiB, CUDA {machine['cuda']})" if memory else "no GPU"
    lines += [f"{gpu}; {machine['cpu']}, {machine['cpus']} cores; Python {machine['python']}, torch {machine['torch']}, "
              f"transformers {machine['transformers']}; commit {machine['commit']}{' with changes' if machine['changed_since'] else ''}.", ""]
    speeds = [row for name, one in good.items() if "throughput" in one["report"] for row in speed_rows(name, one)]
    headers = ["part", "rows", "rows a second", "tokens a second", "TFLOP/s", "share of the peak", "peak memory, GiB", "largest batch"]
    lines += ["## Throughput", "", "Rows are prompts, or users that are ranked. `benchmarks/throughput.py` explains the columns.", "",
              table(speeds, headers), ""]
    rows = [[name, part, each["waits"], each["passes"], each["larger"]["waits"], each["larger"]["passes"], each["larger"]["what"]]
            for name, one in good.items() if one["module"] == "synchronisations"
            for part, each in one["report"]["results"].items()]
    lines += ["## Where the host waits for the device", "", "The JSON of the part names the lines.", "",
              table(rows, ["part", "of", "waits", "passes", "waits, larger", "passes, larger", "larger"]), ""]
    rows = [[name, f"{size['titles']:,}", kind, f"{1e3 * of['median']:.2f}", of["passes"]]
            for name, one in good.items() if one["module"] == "scale" for size in one["report"]["results"]
            for kind, of in size["decoding"].items()]
    lines += ["## The catalogue's size", "", table(rows, ["part", "titles", "model", "decode ms a user", "passes"]), ""]
    rows = [[name, "finished" if one["error"] is None else f"failed: {one['error'].replace('|', '/')}", f"{one['seconds']:.0f}",
             f"`python -m benchmarks.{one['module']} {' '.join(one['run_words'])}`"] for name, one in results.items()]
    lines += ["## Parts", "", table(rows, ["part", "", "seconds", "command"]), ""]
    return "\n".join(lines)


# command line


def parse(arguments):
    """Parse a command line. Returns the options."""
    command = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    command.add_argument("--out", type=Path, required=True, help="folder of the results")
    command.add_argument("--tiny", action="store_true", help="tiny sizes: a test of the command")
    command.add_argument("--peak-tflops", type=float, help="peak of the card in bfloat16 (default: known for some cards)")
    command.add_argument("--only", nargs="*", metavar="NAME", help="parts whose names begin so (default: all)")
    add_device(command, "cuda")
    given = command.parse_args(arguments)
    check_device(command, given.device)
    if given.device == "cpu" and not given.tiny:
        command.error("argument --device: found cpu, which would take days at these sizes; expected --tiny beside it")
    unknown = [word for word in given.only or () if not any(name.startswith(word) for name in parts(given))]
    if unknown:
        command.error(f"argument --only: found {', '.join(unknown)}, expected beginnings of {', '.join(parts(given))}")
    return given


def main(arguments=None):
    """Run the parts and write the page. Returns the exit status: 1 if a part failed."""
    given = parse(sys.argv[1:] if arguments is None else list(arguments))
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    machine, results = surroundings(device=given.device), {}
    commit = machine["commit"] + ("+" if machine["changed_since"] or machine["commit"] == "unknown" else "")
    for name, (module, words) in parts(given).items():
        if not given.only or any(name.startswith(word) for word in given.only):
            results[name] = run_part(name, module, words, out, commit)
        elif (out / f"{name}.json").is_file():  # of an earlier call
            results[name] = json.loads((out / f"{name}.json").read_text())
        else:
            continue
        write_json(out / "gpu.json", {"surroundings": machine, "tiny": given.tiny, "parts": results})
        (out / "gpu.md").write_text(page(results, machine, given.tiny), encoding="utf-8")
    failed = [name for name, one in results.items() if one["error"] is not None]
    print(f"{len(results) - len(failed)} of {len(results)} parts finished{', failed: ' + ', '.join(failed) if failed else ''}. "
          f"The page is {out / 'gpu.md'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
