"""The benchmark of shared prefixes, on the tiny data set."""

import json

import pytest
from conftest import TINY, TINY_FLR

from benchmarks import prefixes


@pytest.mark.parametrize("model", ["FLR", "FLRMix"])
def test_its_figures(session_data, tmp_path, capsys, monkeypatch, model):
    monkeypatch.setattr(prefixes, "in_fresh_process", lambda module, words: prefixes.main(words))
    file, options = tmp_path / "found.json", {**TINY, **TINY_FLR}
    if model == "FLRMix":
        options["backbone"] = "compact"
    words = [f"--option={name}={json.dumps(value)}" for name, value in options.items()
             if name not in ("train_batch_size", "show_progress", "state")]
    found = prefixes.main(["--dataset=tiny", f"--model={model}", f"--data={session_data}", "--batch=16", "--steps=1", "--repeats=2",
                           f"--json={file}", *words])
    assert set(found["results"]) == {"row by row", "shared"} and found["largest_difference"] < prefixes.TOLERANCE
    assert all(one["ms_per_row"] > 0 and one["ratio"] > 0 for one in found["results"].values())
    assert found["results"]["row by row"]["ratio"] == 1 and json.loads(file.read_text())["results"].keys() == found["results"].keys()
    assert "times as fast" in capsys.readouterr().out


def test_a_difference_is_found(session_data, monkeypatch):
    """If shared reading gave other states, the benchmark would stop."""
    from recbole_flr.model.reasoner import Context

    expected = Context.prefixes
    monkeypatch.setattr(Context, "prefixes", lambda self, source, tokens: expected(self, source, tokens - 1))
    words = [f"--option={name}={json.dumps(value)}" for name, value in {**TINY, **TINY_FLR}.items()
             if name not in ("train_batch_size", "show_progress", "state")]
    given = prefixes.parse(["--dataset=tiny", f"--data={session_data}", "--batch=16", *words])
    with pytest.raises(AssertionError, match="the versions differ by"):
        prefixes.check_equal(given)
