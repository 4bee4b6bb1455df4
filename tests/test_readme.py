"""README and docs: the section "Your own data" followed line by line, and every figure, link, option and field that they name."""

import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import recbole
import yaml
from conftest import TINY, TINY_FLR
from helpers_command import python
from recbole.utils import argument_list

import recbole_flr
from recbole_flr import command, config, contracts, options
from recbole_flr.comparison.command import report_main
from recbole_flr.registry import model_names

ROOT = Path(__file__).resolve().parents[1]
README, DOCS, RESULTS = ROOT / "README.md", sorted((ROOT / "docs").glob("*.md")), sorted((ROOT / "results").glob("*.md"))
DESCRIBED = [README, *DOCS]  # results/*.md tell what was run at an earlier commit, whose commands may be gone
OTHER_PROGRAMS = {"pip": {"no-deps"}, "tensorboard": {"logdir"}}
PLACEHOLDERS = {"NAME", "FILE", "FOLDER", "PATH"}  # words in place of a value
EXAMPLES = {"recbole_flr/model/retrieval.py", "properties/model/Retrieval.yaml"}  # files that a reader would add


def text_of(path):
    return path.read_text(encoding="utf-8")


def relative(path):
    return str(path.relative_to(ROOT))


def section(text, heading):
    """The text below a heading, up to the next heading of the same level or a higher one."""
    level = heading.split()[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.DOTALL | re.MULTILINE)
    return found[1]


def rows(table):
    """Rows of all markdown tables of a text, each a list of cells."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("| ")]


# the section "Your own data"


def own_data_commands():
    """The section's commands, as lists of words, in order."""
    blocks = re.findall(r"<!-- own data -->\s*```bash\n(.*?)```", section(text_of(README), "## Your own data"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").strip().splitlines()]


def test_the_printed_lines_of_the_example_are_in_its_file():
    block = re.search(r"```\n(customer,.*?)```", section(text_of(README), "## Your own data"), re.DOTALL)[1]
    header, *printed = block.splitlines()
    first, *lines = text_of(ROOT / "docs" / "example" / "shop.csv").splitlines()
    assert header == first and printed and set(printed) <= set(lines)


def test_your_own_data(tmp_path, capsys):
    (tmp_path / "docs" / "example").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "example" / "shop.csv", tmp_path / "docs" / "example")
    convert, *runs = own_data_commands()
    assert convert[:3] == ["python", "-m", "dataset_scripts.convert"] and len(runs) == 2

    status, printed = python(*convert[1:]), capsys.readouterr()
    assert status == 0, printed.err
    report = json.loads((tmp_path / "dataset" / "shop" / "shop.report.json").read_text(encoding="utf-8"))
    assert (report["lines"], report["malformed"], report["malformed_lines"], report["kept"]) == (397, 1, [205], 394)
    assert (report["below_k"], report["items"], report["users"]) == (2, 25, 60)
    assert re.search(r"malformed +1 +first in lines 205", printed.out)
    inter = (tmp_path / "dataset" / "shop" / "shop.inter").read_text(encoding="utf-8")
    items = (tmp_path / "dataset" / "shop" / "shop.item").read_text(encoding="utf-8")
    assert "\tB%201002\t" in inter and 'B%201002\tHarbour Serving Plate, 10" Round' in items  # ids with blanks; quotes, commas

    for words, small in zip(runs, ({}, {key: value for key, value in TINY_FLR.items() if key not in TINY})):
        assert words[:2] == ["python", "run_recbole_flr.py"]
        given = [f"--{key}={value}" for key, value in {**small, "epochs": 1, "use_gpu": False, "state": "INFO"}.items()]
        status, printed = python(ROOT / "run_recbole_flr.py", *words[2:], *given), capsys.readouterr()
        assert status == 0, printed.err[-3000:]
        assert "Result" in printed.out + printed.err
        run, = (tmp_path / "saved").glob(f"{words[2].removeprefix('--model=')}-shop-*")
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        assert result["data"]["rows"] == {part: report[part] for part in ("train", "valid", "test")}
        check_fields_of_result(result)
        check_arrays_of_ranks(run)
        check_python_of_ranks(run, result["test_result"]["ndcg@10"])


def documented(heading):
    """Names in the first column of each table of a section of docs/output.md: one set for each table."""
    tables = re.split(r"\n(?!\|)", section(text_of(ROOT / "docs" / "output.md"), heading))
    return [{name for cell in cells for name in re.findall(r"`(\w+)`", cell[0])} for cells in map(rows, tables) if cells]


def check_fields_of_result(result):
    whole, stage = documented("## result.json")
    assert whole == set(result)
    assert stage >= set(result["stages"][-1]) and all(set(each) <= stage for each in result["stages"])
    about = section(text_of(ROOT / "docs" / "output.md"), "## result.json")
    for name in ("data", "hardware"):
        assert all(f"`{field}`" in about for field in result[name]), name


def check_arrays_of_ranks(run):
    names, = documented("## ranks.npz")
    assert {f"{part}_{name}" for part in ("valid", "test") for name in names} == set(np.load(run / "ranks.npz").files)


def check_python_of_ranks(run, expected):
    """The Python of docs/output.md, with the run's own folder in place of the example's."""
    code = re.search(r"<!-- ranks -->\s*```python\n(.*?)```", text_of(ROOT / "docs" / "output.md"), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 12 and "saved/FLR-toys_demo-..." in code
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace("saved/FLR-toys_demo-...", str(run)), {})
    computed, stored = map(float, printed.getvalue().split())
    assert stored == expected and computed == pytest.approx(expected, abs=1e-4)


# size and figures


def test_the_readme_is_short():
    assert len(text_of(README).splitlines()) <= 130


@functools.cache
def measured():
    """Model -> (Hit@10, NDCG@10) of results/movies.md and of the first table of results/mixture.md, as written there."""
    figures = {}
    for name in ("popularity", "FLR", "LatentR3", "BIGRec"):
        row, = (cells for cells in rows(text_of(ROOT / "results" / "movies.md")) if cells[0] == name)
        figures[name] = row[2], row[4]
    first = section(text_of(ROOT / "results" / "mixture.md"), "## movies")
    for label, name in (("SASRec (RecBole's, its defaults)", "SASRec"), ("VSKNN", "VSKNN"), ("FLRMix", "FLRMix")):
        row, = (cells for cells in rows(first) if cells[:2] == [label, "test"])
        figures[name] = row[3], row[5]
    return figures


def test_columns_of_the_measured_table():
    heads = [cells for cells in rows(text_of(ROOT / "results" / "movies.md")) if cells[0] == "test"]
    assert len(heads) == 2 and all((cells[2], cells[4]) == ("Hit@10", "NDCG@10") for cells in heads)
    heads = [cells for cells in rows(text_of(ROOT / "results" / "mixture.md")) if cells[:2] == ["model", "rows"]]
    assert len(heads) == 3 and all((cells[3], cells[5]) == ("Hit@10", "NDCG@10") for cells in heads)


def test_the_figures_of_the_readme_are_the_measured_ones():
    head, *table = rows(section(text_of(README), "## Results"))
    table = [cells for cells in table if not cells[0].startswith("---")]
    assert head == ["model", "Hit@10", "NDCG@10", "seeds"]
    assert {cells[0]: (cells[1], cells[2]) for cells in table} == measured()
    assert [cells[3] for cells in table] == ["-", "3", "3", "3", "3", "-", "3"]  # seeds


def test_the_picture_shows_the_measured_figures():
    picture = ElementTree.parse(ROOT / "docs" / "results.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    shown = {}
    for bar in picture.iter(f"{space}g"):
        label, value = bar.findall(f"{space}text")
        width = float(bar.find(f"{space}rect").get("width"))
        assert label.text == bar.get("id") and width == pytest.approx(3000 * float(value.text), abs=0.05)
        shown[label.text] = value.text
    assert shown == {name: ndcg.split()[0] for name, (_, ndcg) in measured().items()}
    alternative = re.search(r"!\[(.*?)\]\(docs/results\.svg\)", text_of(README))[1]
    assert alternative == picture.find(f"{space}title").text
    assert alternative.endswith(", ".join(f"{name} {value}" for name, value in shown.items()))


# links and files


def anchors(path):
    """The anchors that GitHub gives to the headings of a page."""
    found = []
    for line in re.sub(r"^```.*?^```", "", text_of(path), flags=re.DOTALL | re.MULTILINE).splitlines():
        if re.match(r"#{1,6} ", line):
            name = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
            found.append(f"{name}-{found.count(name)}" if name in found else name)
    return found


@pytest.mark.parametrize("page", [*DESCRIBED, *RESULTS], ids=relative)
def test_relative_links(page):
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", DESCRIBED, ids=relative)
def test_paths_that_are_named_exist(page):
    folders = "recbole_flr|properties|dataset_scripts|benchmarks|tests|docs|results"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*|\w+\.py)`", text_of(page)):
        assert (ROOT / path).exists() or path in EXAMPLES, path


def test_every_page_is_linked_from_the_readme():
    assert all(relative(page) in text_of(README) or page.name in text_of(README) for page in DOCS)


# options


@functools.cache
def declared():
    """Name -> all declarations of an option in properties/."""
    found = {}
    for path in options.declaring_files():
        for name, option in options.read_options(path).items():
            found.setdefault(name, []).append(option)
    return found


@functools.cache
def run_options():
    """Names of all options that `run_recbole_flr.py` knows: the command's own words, the plug-in's, and RecBole's."""
    own = set(re.findall(r"--([a-z_]+)", command.USAGE))
    names = own | set(declared()) | config.UNDECLARED
    for path in (Path(recbole.__file__).parent / "properties").rglob("*.yaml"):
        names.update(yaml.load(path.read_text(encoding="utf-8"), Loader=options.Loader) or {})
    for name in dir(argument_list):
        if name.endswith("_arguments"):
            names.update(getattr(argument_list, name))
    return names


@functools.cache
def help_options(module, word=None):
    """Options of a module, such as `dataset_scripts.convert`, or of `recbole_flr recommend`: those that its `--help` prints."""
    if module == "benchmarks.popularity":  # it takes the options of a run
        return run_options()
    if module.startswith("benchmarks."):  # to import all of them would take long, so their names are found in the source
        names = (module.removeprefix("benchmarks."), "harness", "made_up", "shapes", "throughput")
        files = {ROOT / "benchmarks" / f"{name}.py" for name in names}
        return set(re.findall(r"[\"'](?:--)?([a-z][a-z-]*)[\"'][:,]", "\n".join(map(text_of, files))))
    commands = {"recommend": command.recommend_main, "report": report_main, "export": command.export_main,
                "backbone": command.backbone_main}
    main = commands[word] if word in commands else importlib.import_module(module).main
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        main(["--help"])
    return set(re.findall(r"--([a-z][\w-]*)", printed.getvalue()))


def commands(text):
    """All commands in the code of a page, as lists of words."""
    fenced = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"(?<!`)`((?:python3?|pip|tensorboard) [^`]+)`", text)
    lines = [line for block in [*fenced, *inline] for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(part, comments=True) for line in lines for part in line.split("&&") if part.strip()]
    return [words for words in found if words]


LAUNCHERS = ("torchrun", "srun", "accelerate")


def check_command(words):
    """Every option of a command exists, and the value of an option of the plug-in is allowed."""
    if words[0] in LAUNCHERS and "run_recbole_flr.py" in words:  # what stands before it are options of the launcher
        words = ["python", *words[words.index("run_recbole_flr.py"):]]
    given = [word[2:].partition("=") for word in words if word.startswith("--")]
    if words[0] in OTHER_PROGRAMS:
        assert {name for name, _, _ in given} <= OTHER_PROGRAMS[words[0]], words
    elif words[1:2] == ["run_recbole_flr.py"]:
        for name, _, value in given:
            name = name.rpartition(".")[2]  # --FLR.num_factors=3 is an option of one model of a comparison
            assert name in run_options(), words
            placeholder = value in PLACEHOLDERS or "..." in value or name == "help"
            if name == "model" and not placeholder:
                assert set(value.split(",")) <= {*model_names(), "Retrieval"}, words
            elif name in declared() and not placeholder:
                allowed = [option.accepts(value if option.is_text else options.parse_value(value)) for option in declared()[name]]
                assert any(allowed), words
    elif words[1:2] == ["-m"] and given:
        known = help_options(words[2], words[3] if words[2] == "recbole_flr" else None)
        assert {name for name, _, _ in given} <= known, words
    else:
        assert not given, words


@pytest.mark.parametrize("page", DESCRIBED, ids=relative)
def test_commands_have_options_that_exist(page):
    for words in commands(text_of(page)):
        check_command(words)


def test_most_commands_are_found():
    found = [words for page in DESCRIBED for words in commands(text_of(page))]
    assert sum("run_recbole_flr.py" in words for words in found) >= 20
    assert {words[2] for words in found if words[1:2] == ["-m"]} >= {
        "dataset_scripts.convert", "dataset_scripts.download", "recbole_flr", "benchmarks.training", "benchmarks.popularity",
    }


@pytest.mark.parametrize("wrong", [
    "python run_recbole_flr.py --model=FLR --num_beans=3", "python run_recbole_flr.py --num_beams=none",
    "python run_recbole_flr.py --model=FLRR", "python -m dataset_scripts.convert --column a=b", "pip install --deps x",
    "python -m recbole_flr recommend --top 3", "python -m benchmarks.training --layer=3", "ls --all",
])  # fmt: skip
def test_a_wrong_command_is_noticed(wrong):
    with pytest.raises(AssertionError):
        check_command(shlex.split(wrong))


@pytest.mark.parametrize("page", DESCRIBED, ids=relative)
def test_options_that_are_named_exist(page):
    known = {"help"} | run_options() | help_options("dataset_scripts.convert") | help_options("dataset_scripts.download")
    known |= help_options("recbole_flr", "recommend") | help_options("recbole_flr", "report")
    known |= set.union(*OTHER_PROGRAMS.values()) | {"json"} | help_options("benchmarks.gpu")
    for name, value in re.findall(r"`--(?:[A-Z]\w*\.)?([A-Za-z][\w-]*)(=value)?", text_of(page)):
        assert name in known or (name, value) == ("name", "=value"), name


def test_every_option_of_the_converter_is_described():
    cells = [row[0] for row in rows(section(text_of(ROOT / "docs" / "data.md"), "## Options of the converter"))]
    described = {name for cell in cells for name in re.findall(r"--([a-z-]+)", cell)}
    assert help_options("dataset_scripts.convert") - described == {"help", "interactions", "items"}  # the last are other names
    cells = [row[0] for row in rows(section(text_of(ROOT / "docs" / "data.md"), "## Download"))]
    assert help_options("dataset_scripts.download") == {"help"} | {cell.strip("`-") for cell in cells if cell.startswith("`")}


def test_options_in_tables_of_models_exist():
    cells = [row[0] for row in rows(section(text_of(ROOT / "docs" / "models.md"), "## Options and their costs"))]
    names = [(name, default) for cell in cells for name, default in re.findall(r"`(\w+)` \((?:`?)([\w.]+)", cell)]
    assert len(names) >= 15
    for name, default in names:
        values = {option.value for option in declared()[name] if option.value is not None} or {0.01}  # kl_coef: FLR's
        assert options.parse_value(default) in values, name


# names of Python


def test_functions_that_are_named_exist():
    for page in DESCRIBED:
        for name in re.findall(r"recbole_flr\.(\w+)\(", text_of(page)):
            assert name in recbole_flr.__all__, name


def test_the_model_and_the_stage_of_the_docs_are_the_tested_ones():
    tested, page = text_of(ROOT / "tests" / "test_plain_models.py"), text_of(ROOT / "docs" / "models.md")
    model, stage = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    declaration, = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert model.startswith("class Retrieval(") and model in tested
    assert stage.startswith("class LastItem(Stage)") and stage in tested
    assert f'"Retrieval": """\\\n{declaration}"""' in tested


@pytest.mark.parametrize("contract", [contracts.Recommender, contracts.Thinker])
def test_the_contract_of_the_docs_is_that_of_the_code(contract):
    table = rows(section(text_of(ROOT / "docs" / "models.md"), "## What a model declares"))
    row, = (cells for cells in table if cells[0] == f"`{contract.__name__}`")
    named = set(re.findall(r"`(\w+)(?:\([\w, ]*\))?`", row[1])) - {"grpo"}
    public = {name for name in vars(contract) if not name.startswith("_")}
    assert named == public | ({"reasoner"} if contract is contracts.Thinker else set())
