"""The benchmark of the answer to one user, on a tiny shop."""

import json
from pathlib import Path

from benchmarks import recommend as benchmark


def test_a_made_up_shop(capsys):
    words = ["--items=60", "--shoppers=40", "--users=3", "--bulk=5", "--k=4", "--json=out.json"]
    results = benchmark.main(words)
    text = capsys.readouterr().out
    assert [(found["model"], found["encoder"]) for found in results] == [("FLRMix", "items"), ("FLR", "compact"), ("FLRMix", "compact")]
    for found in results:
        assert found["items"] == 60
        assert len(found["milliseconds"]) == 3 and min(found["milliseconds"]) > 0 and found["users_per_second"] > 0
        assert found["model"] in text
    assert json.loads(Path("out.json").read_text())["options"]["users"] == 3


def test_runs_of_the_user(trained, capsys):
    folder, _ = trained("FLRMix")
    found, = benchmark.main(["--checkpoint", str(folder), "--users=2", "--bulk=3"])
    assert found["items"] == 20 and "FLRMix" in capsys.readouterr().out
