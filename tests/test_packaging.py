"""A built wheel works from another folder, properties and data scripts included."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ["recbole_flr", "dataset_scripts", "properties", "setup.py", "run_recbole_flr.py", "README.md"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder into which a wheel of the project was installed."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *PARTS], cwd=ROOT, capture_output=True, text=True)
    files = listed.stdout.split() or [  # without git
        path.relative_to(ROOT) for part in PARTS for path in [ROOT / part, *(ROOT / part).rglob("*")]
        if path.is_file() and "__pycache__" not in path.parts
    ]
    for file in files:  # what a clone has, and a copy: building writes into the source tree
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, source / file)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(root), str(source)], check=True)
    wheel, = root.glob("recbole_flr-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(root / "site"), str(wheel)], check=True)
    return root / "site"


def python(installed, *words):
    """Run Python where only the installed wheel can be found."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


def test_every_yaml_file_is_there(installed):
    own = {path.relative_to(ROOT / "properties") for path in (ROOT / "properties").rglob("*.yaml")}
    assert len(own) >= 12
    assert own == {path.relative_to(installed / "recbole_flr/properties")
                   for path in (installed / "recbole_flr/properties").rglob("*.yaml")}


def test_the_parts_of_the_report_are_there(installed):
    names = {path.name for path in (ROOT / "recbole_flr" / "comparison").iterdir() if path.suffix in (".html", ".css", ".js", ".yaml")}
    assert len(names) == 4 and names <= {path.name for path in (installed / "recbole_flr" / "comparison").iterdir()}


def test_help_from_another_folder(installed):
    done = python(installed, "-m", "recbole_flr", "run", "--help")
    assert done.returncode == 0 and "--num_beams=20" in done.stdout


def test_a_run_from_another_folder(installed):
    words = ["--model=FLR", "--dataset=toys_demo", "--epochs=0", "--warmup_epochs=0", "--compact_hidden_size=8",
             "--compact_layers=1", "--stages=sft", "--num_beams=5", "--topk=[5]", "--valid_metric=NDCG@5"]
    done = python(installed, "-m", "recbole_flr", "run", *words, "--show_progress=False")
    assert done.returncode == 0, done.stderr
    assert "Result" in done.stderr and Path("dataset/toys_demo/toys_demo.test.inter").is_file()
    where = python(installed, "-c", "import recbole_flr; print(recbole_flr.__file__)").stdout
    assert where.startswith(str(installed))
