"""The README's section "Your own data", followed line by line on a log made for it."""

import csv
import json
import os
import random
import re
import shlex
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

from conftest import TINY, TINY_FLR

ROOT = Path(__file__).resolve().parents[1]


def commands():
    """The section's commands, as lists of words, in order."""
    section = re.search(r"\n## Your own data\n(.*?)\n## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    blocks = re.findall(r"<!-- own data -->\s*```bash\n(.*?)```", section, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.strip().splitlines()]


def write_log(path, header):
    """A shop's log with the section's columns: 30 customers, 12 products; ids with blanks, titles with quotes and commas."""
    rng, start = random.Random(0), datetime(2024, 3, 1, 9, 30)
    rows = []
    for customer in range(30):
        for step, product in enumerate(rng.sample(range(12), 7)):
            when = start + timedelta(days=step, minutes=customer)
            title = f'Dragon Valley "Ember" Puzzle {product}, 500 Pieces'
            rows.append([f"C-{customer}", f"B {1000 + product}", str(when), title, rng.randint(1, 5)])
    rng.shuffle(rows)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
        file.write("half a line,B 1000\n")


def test_your_own_data(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    header = re.search(r"```\n(customer,.*)\n", text)[1].split(",")
    write_log(tmp_path / "shop.csv", header)
    convert, *runs = commands()
    assert convert[:3] == ["python", "-m", "dataset_scripts.convert"] and len(runs) == 2

    done = subprocess.run([sys.executable, *convert[1:]], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "dataset" / "shop" / "shop.report.json").read_text(encoding="utf-8"))
    assert (report["lines"], report["malformed"], report["malformed_lines"], report["kept"]) == (211, 1, [212], 210)
    assert re.search(r"malformed +1 +first in lines 212", done.stdout)
    inter = (tmp_path / "dataset" / "shop" / "shop.inter").read_text(encoding="utf-8")
    assert "\tB%201001\t" in inter

    for command, small in zip(runs, ({}, {key: value for key, value in TINY_FLR.items() if key not in TINY})):
        assert command[:2] == ["python", "run_recbole_flr.py"]
        options = [f"--{key}={value}" for key, value in {**small, "epochs": 1, "use_gpu": False, "state": "INFO"}.items()]
        words = [sys.executable, ROOT / "run_recbole_flr.py", *command[2:], *options]
        done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "test result" in done.stdout + done.stderr


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}
