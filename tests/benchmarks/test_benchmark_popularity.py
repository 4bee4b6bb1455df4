"""The popularity ranking against a count in plain Python."""

from conftest import TINY

from benchmarks import popularity
from recbole_flr.config import Config


def targets(data, part):
    lines = (data / "tiny" / f"tiny.{part}.inter").read_text().splitlines()[1:]
    return [line.split("\t")[2] for line in lines]


def test_hits_are_those_of_counting_targets(tiny_data, capsys, monkeypatch):
    def config(model, dataset, config_dict):
        return Config(model, dataset, config_dict={**TINY, **config_dict, "topk": [3], "valid_metric": "Hit@3"})

    monkeypatch.setattr(popularity, "Config", config)
    result = popularity.main([f"--data_path={tiny_data}", "--dataset=tiny"])
    assert [line.split(" ")[0] for line in capsys.readouterr().out.splitlines()] == ["valid", "test"]
    train, test = targets(tiny_data, "train"), targets(tiny_data, "test")
    ordered = sorted(map(train.count, set(train)), reverse=True)
    certain = sum(train.count(item) > ordered[3] for item in test)  # among the best three, however ties are broken
    possible = sum(train.count(item) >= ordered[2] for item in test)
    assert 0 < possible < len(test)
    assert certain / len(test) - 1e-4 <= result["hit@3"] <= possible / len(test) + 1e-4
    assert result.keys() >= {"title_hit@3", "title_ndcg@3"}
