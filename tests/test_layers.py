"""Imports follow the data flow: a file of the package imports only files of lower layers."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [  # from the command line down to what all share
    ["__main__"],
    ["command"],
    ["bulk_recommendation", "export", "search"],
    ["comparison.command"],
    ["comparison.report"],
    ["comparison.output"],
    ["comparison.plots", "comparison.formats", "comparison.cost"],
    ["comparison.table", "comparison.runs"],
    ["comparison.summary", "comparison.worker"],
    ["comparison.ranking_time"],
    ["comparison.results", "comparison.statistics", "comparison.slices", "comparison.plan"],
    ["comparison.studies"],
    ["recommendation"],
    ["quick_start", "search_result", "search_space", "search_process", "user_files"],
    ["factor_choice", "training.staged"],
    ["trainer", "rows", "factor_statistics"],
    ["training.steps", "training.shared_files", "launch"],
    ["identity"],
    ["result", "evaluation", "console"],
    ["config"],
    ["needs"],
    ["registry", "options"],
    ["model.cot"],
    ["model.base", "model.alpharec", "model.flr", "model.flrmix", "model.lares", "model.latentr3", "model.bigrec",
     "model.rearec", "model.sequential_rules", "model.vsknn"],
    ["model.ranking", "model.mixture_options", "model.direct_writer"],
    ["model.memory"],
    ["model.transitions", "model.neighbors"],
    ["model.writer", "model.counted", "model.title_reader"],
    ["training.warmup", "training.reinforcement", "training.mixture", "training.self_supervised"],
    ["training.supervised"],
    ["training.schedule"],
    ["training.stage", "training.grpo", "training.lock", "training.untrained", "model.titles"],
    ["model.title_scores"],
    ["training.checkpoint", "model.tree", "model.item_encoder"],
    ["training.sharding"],
    ["model.reasoner"],
    ["model.factors", "model.backbone", "model.mixture", "model.blend", "model.text_vectors",
     "model.remembered"],
    ["decoding"],
    ["decoding.exact", "decoding.beam"],
    ["decoding.items", "decoding.finished"],
    ["decoding.scorer"],
    ["decoding.trie"],
    ["data.batching", "data.packing", "data.prefixes"],
    ["data.sharing"],
    ["data.prompt"],
    ["data.catalog"],
    ["data.loading"],
    ["data.datasets"],
    ["data.atomic", "data.table"],
    ["ragged", "contracts", "pretrained", "paths", "exit_status", "store", "training.header", "model.hub",
     "model.precision"],
    ["protocol"],
    ["allowed_values"],
    ["files"],
    ["distributed"],
    ["processes"],
    ["errors", "words", "comparison", "data", "model", "training", ""],
]
UNWANTED = ("model", "decoding", "transformers", "peft", "dataset_scripts", "comparison")  # in a run of SASRec
PLACE = {name: number for number, layer in enumerate(LAYERS) for name in layer}


def modules():
    """Name below recbole_flr -> file."""
    root = ROOT / "recbole_flr"
    found = {}
    for path in root.rglob("*.py"):
        parts = list(path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, known, lazy=False):
    """Modules of the package that a file imports; with `lazy` also those that its functions import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazy else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        for name in names:
            inside = name.removeprefix("recbole_flr").removeprefix(".") if name.split(".")[0] == "recbole_flr" else None
            if inside in known:
                found.add(inside)
    return found - {""}


def test_every_file_has_a_layer():
    assert set(modules()) == set(PLACE)


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_file_imports_lower_layers_only(name):
    known = modules()
    for other in imports(known[name], known, lazy=True):
        assert PLACE[other] > PLACE[name], f"{name} imports {other}, which does not stand below it"


def test_options_and_registry_do_not_know_each_other():
    known = modules()
    assert "registry" not in imports(known["options"], known, lazy=True)
    assert "options" not in imports(known["registry"], known, lazy=True)


def test_no_code_asks_with_hasattr():
    for path in (ROOT / "recbole_flr").rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "hasattr"], path


def test_a_run_of_sasrec_imports_nothing_of_language_models(session_data):
    """It does not import the dataset scripts either, because the files of the data set exist."""
    options = {**TINY, "epochs": 1, "data_path": str(session_data)}
    code = (
        "import sys, json, recbole_flr, recbole_flr.command\n"
        f"recbole_flr.run_recbole_flr('SASRec', 'tiny', config_dict=json.loads({json.dumps(json.dumps(options))}))\n"
        "names = ('recbole_flr', 'dataset_scripts', 'transformers', 'peft')\n"
        "print(json.dumps([module for module in sys.modules if module.split('.')[0] in names]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    loaded = {name.removeprefix("recbole_flr.") for name in json.loads(done.stdout.splitlines()[-1])}
    unwanted = {name for name in loaded if name.split(".")[0] in UNWANTED}
    assert "trainer" in loaded and not unwanted
    assert not loaded & {"training.grpo", "training.reinforcement", "training.staged", "training.stage", "data.prompt", "ragged"}
