"""The progress of the benchmark of kills: a later command counts further, with the same moments."""

import json

import pytest

from benchmarks import kills as benchmark
from benchmarks import progress


def test_a_later_command_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "surroundings", lambda: {"commit": "a", "changed_since": False})
    path = tmp_path / "kills.json"
    first = benchmark.Progress(path, 1, 2)
    first.of("SASRec", True)
    first.count("SASRec", equal=True, on_one=True)
    first.count("SASRec", equal=False, before_first_save=True)
    assert capsys.readouterr().err.count("SASRec: {") == 2
    later = benchmark.Progress(path, 1, 2)
    found = later.of("SASRec", True)
    assert found == {"kills": 2, "before_first_save": 1, "equal": 1, "on_one": 1}
    assert json.loads(path.read_text())["results"] == {"SASRec": found}
    assert benchmark.kill_runs(None, "SASRec", [], "", 2, later, 2) is found  # nothing is left to do
    moments = [later.moment("SASRec", number) for number in range(50)]
    assert moments == [first.moment("SASRec", number) for number in range(50)] and len(set(moments)) == 50
    assert 0 <= min(moments) < 0.2 and 0.8 < max(moments) < 1 and later.moment("FLR, sft", 0) != moments[0]
    for seed, ranks in ((2, 2), (1, 1)):
        with pytest.raises(ValueError, match="name another file"):
            benchmark.Progress(path, seed, ranks)
