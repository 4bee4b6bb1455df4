"""The search: its trials, pruning, resuming, sharing, and the test of the chosen trial.

Most tests replace the training of a trial by a function of its options, so that the right answer is known, and keep the trials in
memory. The tests of real training have them in SQLite.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from conftest import TINY, TINY_FLRMIX
from helpers_command import python

optuna = pytest.importorskip("optuna")
sqlalchemy = pytest.importorskip("sqlalchemy")

from recbole_flr import search as module  # noqa: E402
from recbole_flr.errors import CheckpointError, ConfigError, DataError  # noqa: E402
from recbole_flr.quick_start import run_recbole_flr  # noqa: E402
from recbole_flr.search import Search, run_search  # noqa: E402
from recbole_flr.search_result import best_trial, read_study, search_plots  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[1] / "run_recbole_flr.py"
RANGES = "learning_rate: {low: 1e-4, high: 1e-1, log: true}\nn_layers: {low: 1, high: 3}\nhidden_size: [16, 32, 64]\n"


@pytest.fixture(scope="module", autouse=True)
def fast_storage():
    """SQLite does not wait for the disk. The tests kill no process."""
    def connected(connection, record):
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", connected)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", connected)


@pytest.fixture
def options(session_data):
    return {**TINY, "data_path": str(session_data)}


@pytest.fixture
def made_up(monkeypatch, options):
    """made_up(score, trials=..., ...) -> (result of a search, its study).

    A trial has the validation scores that score(config) returns as a list, or it fails with what score(config) raises.
    """
    Path("ranges.yaml").write_text(RANGES)
    storages, used = defaultdict(optuna.storages.InMemoryStorage), []
    monkeypatch.setattr(Search, "_storage", lambda search: (used.append(search.folder), storages[search.folder])[1])

    def trained(score):
        def train_only(config, on_start, on_validation):
            folder = Path("saved") / f"run-{len(list(Path('saved').iterdir()))}-{config['learning_rate']:.6f}"
            folder.mkdir()
            (folder / "last.safetensors").touch()
            config["data_fingerprint"] = "same"
            on_start(folder)
            scores = score(config)
            for epoch, value in enumerate(scores):
                on_validation(epoch, value)
            return (max if config["valid_metric_bigger"] else min)(scores), {"ndcg@10": max(scores)}
        return train_only

    def tested(model=None, dataset=None, config_file_list=None, config_dict=None):
        return {"best_valid_score": 0, "best_valid_result": {}, "test_result": {"ndcg@10": 0.25}}

    def run(score, trials=8, seconds=None, **more):
        monkeypatch.setattr(module, "train_only", trained(score))
        monkeypatch.setattr(module, "run_recbole_flr", tested)
        found = run_search("SASRec", "tiny", None, {**options, **more}, search="ranges.yaml", trials=trials, seconds=seconds)
        return found, optuna.load_study(study_name="search", storage=storages[used[-1]])

    return run


def by_layers(config):
    """Best with three layers and a small learning rate."""
    return [0.1 * config["n_layers"] - config["learning_rate"]]


def trials_of(study, *states):
    return [trial for trial in study.trials if trial.state.name in states]


def test_the_best_trial_is_chosen_and_only_its_run_is_kept(made_up):
    result, study = made_up(by_layers, trials=8)
    values = [trial.value for trial in study.trials]
    best = max(study.trials, key=lambda trial: trial.value)
    assert len(values) == 8 and best_trial(study).number == best.number == result["search"]["trial"]
    assert best.value > values[0] == pytest.approx(0.2 - 0.001)
    assert result["test_result"] == {"ndcg@10": 0.25}
    assert [path.name for path in Path("saved").glob("run-*")] == [best.user_attrs["run"]]
    written = yaml.safe_load((Path(result["search"]["folder"]) / "best.yaml").read_text())
    chosen = {name: written[name] for name in ("learning_rate", "n_layers", "hidden_size")}
    assert chosen == best.params == result["search"]["options"]
    assert written["train_batch_size"] == 32 and "data_path" not in written


def test_the_first_trial_has_the_options_as_given_and_is_never_pruned(made_up):
    seen = []

    def score(config):
        seen.append((config["learning_rate"], config["n_layers"], config["hidden_size"]))
        return [0.5] if len(seen) == 1 else [0.1]

    result, study = made_up(score, learning_rate=0.02, hidden_size=48)  # the width is not among the choices
    assert seen[0] == (0.02, 2, 48) and study.trials[0].params == {"learning_rate": 0.02, "n_layers": 2}
    assert result["search"]["trial"] == 0
    assert result["search"]["options"] == {"learning_rate": 0.02, "n_layers": 2, "hidden_size": 48}
    assert len(set(seen)) == len(seen)
    assert "0 (as given)" in (Path(result["search"]["folder"]) / "trials.md").read_text()


def test_a_smaller_metric_may_be_the_better_one(made_up):
    result, study = made_up(lambda config: [config["learning_rate"]], metrics=["GiniIndex"], valid_metric="GiniIndex@10")
    assert best_trial(study).value == min(trial.value for trial in study.trials) == result["search"]["options"]["learning_rate"]


def test_of_equal_trials_the_first_is_chosen(made_up):
    assert made_up(lambda config: [0.3])[0]["search"]["trial"] == 0


def test_trials_are_pruned_by_the_median(made_up):
    """Compared with a loop over the trials, in the order in which they ran."""
    result, study = made_up(lambda config: [by_layers(config)[0] * (step + 1) for step in range(6)], trials=16)
    ended = []
    for trial in study.trials:
        scores = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        expected = None
        for step in range(6):
            others = [other[step] for other in ended if len(other) == 6]
            if trial.number and step >= 3 and len(others) >= 5:
                if max(scores[:step + 1]) < statistics.median(others):
                    expected = step
                    break
        assert (trial.state.name, len(scores)) == (("COMPLETE", 6) if expected is None else ("PRUNED", expected + 1))
        ended.append(scores)
    assert 0 < len(trials_of(study, "PRUNED")) < 15


def test_a_trial_that_fails_does_not_stop_the_search(made_up):
    def score(config):
        if config["hidden_size"] == 32:
            raise RuntimeError("mat1 and mat2\ncannot be multiplied")
        return by_layers(config)

    result, study = made_up(score, trials=8)
    failed = trials_of(study, "FAIL")
    assert failed and len(study.trials) == 8 and all(trial.params["hidden_size"] == 32 for trial in failed)
    assert {trial.user_attrs["error"] for trial in failed} == {"RuntimeError: mat1 and mat2"}
    assert len(list(Path("saved").glob("run-*"))) == 1
    text = (Path(result["search"]["folder"]) / "trials.md").read_text()
    assert f"{len(failed)} failed" in text and text.count("RuntimeError: mat1 and mat2") == len(failed)


def test_a_search_in_which_all_fails_ends_early(made_up):
    def fails(config):
        raise RuntimeError("no such layer")

    with pytest.raises(ConfigError, match="none of the 5 trials finished; the last error was: RuntimeError: no such layer"):
        made_up(fails, trials=30)


def test_failures_do_not_end_a_search_in_which_a_trial_finished(made_up):
    """Four trials fail, one finishes, two more fail, and five finish."""
    count = []

    def score(config):
        count.append(config)
        if len(count) in (1, 2, 3, 4, 6, 7):
            raise RuntimeError("out of memory")
        return by_layers(config)

    result, study = made_up(score, trials=12)
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 4 + ["COMPLETE"] + ["FAIL"] * 2 + ["COMPLETE"] * 5
    assert result["search"]["trial"] in (4, 7, 8, 9, 10, 11)


def test_given_options_that_cannot_be_end_the_search_at_once(made_up):
    def fails(config):
        raise ConfigError("n_heads: found 3")

    with pytest.raises(ConfigError, match="^n_heads: found 3"):
        made_up(fails)
    assert made_up(by_layers)[1].trials[1].user_attrs["given"]  # the same command tries them again


def test_a_full_disk_stops_the_search_which_then_goes_on(made_up):
    count = []

    def full(config):
        count.append(config)
        if len(count) == 3:
            raise OSError(28, "No space left on device")
        return by_layers(config)

    with pytest.raises(CheckpointError, match="the disk is full.*the search goes on with trial 2"):
        made_up(full)
    result, study = made_up(by_layers)
    assert len(trials_of(study, "COMPLETE")) == 8 and study.trials[2].state.name == "FAIL"
    assert study.trials[3].params == study.trials[2].params


def test_an_interrupted_search_goes_on_with_the_same_proposals(made_up):
    """What it finds is what a search without the interruption finds."""
    count = []

    def interrupted(config):
        count.append(config)
        if len(count) in (1, 6):
            raise KeyboardInterrupt
        return by_layers(config)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made_up(interrupted, trials=9)
    result, study = made_up(interrupted, trials=9)
    params = [trial.params for trial in trials_of(study, "COMPLETE")]
    assert len(params) == 9 and len(study.trials) == 11
    assert len({json.dumps(each) for each in params}) == 9
    assert study.trials[0].params == study.trials[1].params and study.trials[5].params == study.trials[6].params
    assert len(list(Path("saved").glob("run-*"))) == 1


def test_a_finished_search_does_nothing_and_takes_more_trials(made_up):
    made_up(by_layers, trials=4)
    assert len(made_up(lambda config: pytest.fail("trained"), trials=4)[1].trials) == 4
    assert len(made_up(by_layers, trials=7)[1].trials) == 7


def test_other_options_are_another_search(made_up):
    made_up(by_layers, trials=1)
    made_up(by_layers, trials=1, state="ERROR", download=False, port=29500)  # options without an effect on results
    assert len(made_up(by_layers, trials=1, n_heads=1)[1].trials) == 1
    assert len(list(Path("saved").glob("search-*"))) == 2


@pytest.mark.parametrize("changed", [
    RANGES.replace("high: 3", "high: 4"), RANGES.replace(", log: true", ""), RANGES.replace("[16, 32, 64]", "[16, 32]"),
    RANGES.replace("hidden_size: [16, 32, 64]\n", ""),
], ids=["bound", "scale", "choices", "option"])
def test_other_ranges_are_another_search(made_up, changed):
    made_up(by_layers, trials=1)
    Path("ranges.yaml").write_text(changed)
    assert len(made_up(by_layers, trials=1)[1].trials) == 1
    assert len(list(Path("saved").glob("search-*"))) == 2


def test_changed_data_is_refused(made_up):
    made_up(by_layers, trials=1)[1].set_user_attr("data", "other")
    with pytest.raises(DataError, match="tiny has changed since the search in"):
        made_up(by_layers, trials=2)


def test_the_time_is_limited(made_up):
    with pytest.raises(ConfigError, match="none of the 0 trials finished; the time was over"):
        made_up(by_layers, trials=50, seconds=1e-9)


def start(options, trials=6):
    """A search that is not run, so that a test can take its steps."""
    return Search("SASRec", "tiny", None, options, "ranges.yaml", trials, None)


def test_processes_share_the_trials(made_up, options):
    """Two searches take turns. Their proposals differ, and together they have as many trials as one."""
    made_up(by_layers, trials=1)
    first, second = start(options), start(options)
    taken = []
    for search in (first, second, first, second, first):
        trial = search._next_trial()
        taken.append(trial.number)
        search._run_trial(trial)
    assert taken == [1, 2, 3, 4, 5]
    assert first._next_trial() is None and second._next_trial() is None
    params = [json.dumps(trial.params) for trial in first.study.trials]
    assert len(set(params)) == 6


def test_the_last_process_tests_the_best_trial(made_up, options):
    made_up(by_layers, trials=1)
    other = start(options, 2)
    trial = other._next_trial()
    assert made_up(by_layers, trials=2)[0] is None  # the other process is this one, so it is alive
    other._run_trial(trial)
    assert made_up(by_layers, trials=2)[0]["test_result"]


def test_no_more_trials_than_asked_for_if_two_processes_begin_the_last_one(made_up, options, monkeypatch):
    made_up(by_layers, trials=1)
    first, second = start(options, 2), start(options, 2)
    before = second._counted()
    last = first._next_trial()
    real, calls = Search._counted, []
    monkeypatch.setattr(second, "_counted", lambda: calls.append(1) or (before if len(calls) == 1 else real(second)))
    assert last is not None and second._next_trial() is None and len(calls) == 2


def test_the_trial_of_a_killed_process_begins_anew(made_up, options):
    made_up(by_layers, trials=1)
    killed = start(options)
    trial = killed._next_trial()
    killed.ranges["n_layers"].suggest(trial, "n_layers")
    trial.set_user_attr("process", {**trial.user_attrs["process"], "started": 1.0})  # the process id is used by another now
    trial.set_user_attr("run", "run-lost")
    Path("saved/run-lost").mkdir()
    result, study = made_up(by_layers, trials=4)
    assert result and study.trials[1].state.name == "FAIL" and len(trials_of(study, "COMPLETE")) == 4
    assert study.trials[2].params["n_layers"] == trial.params["n_layers"]
    assert not Path("saved/run-lost").exists()


def test_trials_of_another_machine_count_as_running(made_up, options):
    made_up(by_layers, trials=1)
    trial = start(options)._next_trial()
    trial.set_user_attr("process", {"host": "elsewhere", "pid": 1, "started": 1.0})
    assert made_up(by_layers, trials=3)[0] is None


# real training


def count_tests(monkeypatch):
    """The list of the test rows' loaders that are evaluated from now on."""
    from recbole.trainer import Trainer

    evaluate, found = Trainer.evaluate, []

    def counted(self, eval_data, *args, **kwargs):
        found.append(len(eval_data._dataset.inter_feat))
        return evaluate(self, eval_data, *args, **kwargs)

    monkeypatch.setattr(Trainer, "evaluate", counted)
    return found


@pytest.mark.parametrize("model, ranges, given", [
    ("SequentialRules", "row_power: {low: 0, high: 1}\nrecency_decay: [0.2, 0.8]\n", TINY),
    ("SASRec", "learning_rate: {low: 1e-3, high: 1e-1, log: true}\nn_heads: [2, 3]\nloss_type: CE\ntrain_neg_sample_args: null\n",
     {**TINY, "epochs": 3}),
    ("FLRMix", "dropout: {low: 0.0, high: 0.5}\nnoise_scale: [0.1, 0.3]\n",
     {**TINY_FLRMIX, "stages": "sft,grpo", "grpo_epochs": 1, "checkpoint_every": 0}),
])
def test_the_chosen_options_give_the_chosen_result(session_data, monkeypatch, model, ranges, given):
    """A run with best.yaml has the results that the search reports, and only the chosen trial was tested."""
    Path("ranges.yaml").write_text(ranges)
    options, evaluated = {**given, "data_path": str(session_data)}, count_tests(monkeypatch)
    result = run_search(model, "tiny", None, options, search="ranges.yaml", trials=3)
    stages = 2 if "stages" in given else 1
    assert evaluated[-stages:] == [21] * stages and set(evaluated[:-stages]) == {20}  # the validation has 20 rows
    folder = Path(result["search"]["folder"])
    runs = [path for path in Path("saved").iterdir() if path != folder]
    assert len(runs) == 1 and (runs[0] / "result.json").is_file()
    study = read_study(folder)
    assert max(trial.value for trial in trials_of(study, "COMPLETE")) == result["best_valid_score"]
    tested = json.loads((runs[0] / "result.json").read_text())
    assert tested["test_result"] == result["test_result"]
    again = run_recbole_flr(model, "tiny", [str(folder / "best.yaml")], {"data_path": str(session_data)})
    assert {name: again[name] for name in ("best_valid_score", "test_result")} == {
        name: result[name] for name in ("best_valid_score", "test_result")}
    assert run_search(model, "tiny", None, options, search="ranges.yaml", trials=3)["test_result"] == result["test_result"]


def test_the_command(session_data, capsys):
    Path("a.hyper").write_text("row_power uniform 0,1\nrepeat_weight choice [0.0, 0.3]\n")
    words = ["--model=SequentialRules", "--dataset=tiny", f"--data_path={session_data}", "--search=a.hyper", "--trials=3",
             "--search_seconds=600", "--show_progress=False"]
    words += [f"--{name}={TINY[name]}" for name in ("benchmark_filename", "alias_of_item_id", "eval_args")]
    assert python(SCRIPT, *words) == 0
    folder, = Path("saved").glob("search-*")
    table = (folder / "trials.md").read_text()
    assert "# Search for SequentialRules on tiny" in table and "--search=a.hyper" in table
    assert "Test of the chosen trial: hit@5" in table
    log = capsys.readouterr().err
    assert log.count("Trial ") == 4 and "Chosen: trial" in log
    assert "No training" not in log  # what the trials say is in the log file
    assert sum(path.read_text().count("No training") for path in Path("log").rglob("*.log")) == 3


@pytest.mark.parametrize("words, message", [
    (["--trials=0"], "trials: found 0, expected a whole number of at least 1"),
    (["--trials=many"], "trials: found 'many'"),
    (["--search_seconds=-1"], "search_seconds: found -1"),
    (["--search=no.yaml"], "search: cannot read no.yaml"),
    (["--resume=saved/x"], "search: found --resume too"),
    (["--model=SASRecs"], "model: found 'SASRecs'"),
    (["--droput=3"], "found option 'droput'"),
])
def test_wrong_commands(words, message, capsys):
    Path("ranges.yaml").write_text(RANGES)
    given = {"--model": "SASRec", "--dataset": "toys_demo", "--search": "ranges.yaml", **dict(word.split("=") for word in words)}
    assert python(SCRIPT, *(f"{name}={value}" for name, value in given.items())) == 2
    assert message in capsys.readouterr().err


def test_trials_without_a_search(capsys):
    assert python(SCRIPT, "--model=SASRec", "--trials=3") == 2
    assert "found without a search; expected --search=FILE" in capsys.readouterr().err


def test_without_optuna(monkeypatch, options):
    Path("ranges.yaml").write_text(RANGES)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="found no optuna.*pip install optuna"):
        run_search("SASRec", "tiny", None, options, search="ranges.yaml", trials=1)


def test_the_ranges_of_the_plug_in_are_the_default(options):
    assert "hidden_dropout_prob" in Search("SASRec", "tiny", None, options, "default", 1, None).ranges


@pytest.mark.parametrize("given, searched", [({}, "hidden_size"), ({"backbone": "compact"}, "compact_dropout")])
def test_a_model_that_reads_titles_has_ranges_of_its_own(options, given, searched):
    ranges = Search("FLRMix", "tiny", None, {**options, **given}, "default", 1, None).ranges
    assert {"hidden_size", "compact_dropout"} & set(ranges) == {searched}


def test_a_folder_that_is_no_search():
    with pytest.raises(ConfigError, match="expected the folder of a search"):
        read_study("saved")


def test_plots(made_up):
    pytest.importorskip("matplotlib")
    result, study = made_up(lambda config: [value / 2 for value in by_layers(config)] + by_layers(config), trials=6)
    plots = search_plots(study)
    assert "Best result by trial" in plots and "Result by option" in plots
    assert all("<svg" in text for text in plots.values())
    empty = optuna.create_study(direction="maximize")
    assert search_plots(empty) == {}
