"""What ranks.npz says about the rows, against loops over the files."""

import numpy as np
import pytest
from conftest import TINY

from recbole_flr.config import Config
from recbole_flr.data.loading import load_dataset, split
from recbole_flr.result import read_ranks
from recbole_flr.rows import describe_rows, popular_items

DAY = 86_400


def lines(path):
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    names = [field.split(":")[0] for field in head.split("\t")]
    return [dict(zip(names, row.split("\t"))) for row in rows]


def write_log(folder, rng, unit=1):
    """Spread the times of the split files over days, and write the file of all interactions, the first ones included."""
    log = []
    for part in ("train", "valid", "test"):
        path = folder / f"tiny.{part}.inter"
        rows = lines(path)
        for row in rows:
            row["timestamp"] = str((int(rng.integers(0, 5)) + 17_000) * DAY * unit)
            log.append((row["user_id"], row["item_id"], row["timestamp"]))
            if " " not in row["item_id_list"]:
                log.append((row["user_id"], row["item_id_list"], str((16_999 + int(rng.integers(0, 3))) * DAY * unit)))
        head = path.read_text(encoding="utf-8").splitlines()[0]
        names = [field.split(":")[0] for field in head.split("\t")]
        path.write_text("\n".join([head, *("\t".join(row[name] for name in names) for row in rows)]) + "\n", encoding="utf-8")
    body = ["\t".join(entry) for entry in log] + ["stranger\ti1\t5", "u1\tunknown\t6"]
    (folder / "tiny.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *body]) + "\n", encoding="utf-8"
    )
    return log


def days_by_loop(row, log, unit):
    last, time = row["item_id_list"].split(" ")[-1], float(row["timestamp"])
    times = sorted(float(when) for user, item, when in log if user == row["user_id"] and item == last and float(when) <= time)
    if last == row["item_id"] and times:
        times.pop()  # the target itself
    return time // (DAY * unit) - times[-1] // (DAY * unit) if times else None


@pytest.mark.parametrize("seed, unit", [(0, 1), (1, 1), (2, 1000)])
def test_rows_by_loop(tiny_data, seed, unit):
    folder = tiny_data / "tiny"
    log = write_log(folder, np.random.default_rng(seed), unit)
    config = Config("SASRec", "tiny", config_dict={**TINY, "data_path": str(tiny_data)})
    dataset = load_dataset(config)
    loaders = split(config, dataset)
    item, user = dataset.field2token_id["item_id"], dataset.field2token_id["user_id"]
    train = lines(folder / "tiny.train.inter")
    counts = [sum(row["item_id"] == token for row in train) for token in dataset.field2id_token["item_id"]]
    seen = {token for row in train for token in [row["item_id"], *row["item_id_list"].split(" ")]}
    order = sorted(range(1, len(counts)), key=lambda number: (-counts[number], number))
    popular = set(order[: round(0.2 * len(order))])
    for part, loader in (("valid", loaders[1]), ("test", loaders[2])):
        found = describe_rows(config, dataset, loaders[0], loader)
        unknown = 0
        for number, row in enumerate(lines(folder / f"tiny.{part}.inter")):
            history = [item[token] for token in row["item_id_list"].split(" ")]
            assert found["user"][number] == user[row["user_id"]]
            assert found["history"][number].tolist() == history + [0] * (found["history"].shape[1] - len(history))
            assert found["user_rows"][number] == sum(other["user_id"] == row["user_id"] for other in train)
            assert found["target_rows"][number] == counts[item[row["item_id"]]]
            assert found["target_seen"][number] == (row["item_id"] in seen)
            assert found["target_popular"][number] == (item[row["item_id"]] in popular)
            expected = days_by_loop(row, log, unit)
            unknown += expected is None
            assert np.isnan(found["days"][number]) if expected is None else found["days"][number] == expected
        assert unknown < number


def test_without_a_log_the_days_are_not_known(trained):
    folder, _ = trained("VSKNN")
    ranks = read_ranks(folder)
    assert np.isnan(ranks["test_days"]).all() and len(ranks["test_days"]) == len(ranks["test_target"])


def test_a_data_set_that_recbole_splits_knows_its_times():
    config = Config("SASRec", "ml-100k", config_dict={"show_progress": False, "user_inter_num_interval": "[20,22]"})
    dataset = load_dataset(config)
    loaders = split(config, dataset)
    found = describe_rows(config, dataset, loaders[0], loaders[2])
    rows = loaders[2]._dataset.inter_feat
    length = rows["item_length"].numpy()
    for number in range(0, len(length), 7):
        before = rows["timestamp_list"][number][length[number] - 1].item()
        assert found["days"][number] == rows["timestamp"][number].item() // DAY - before // DAY
    assert not np.isnan(found["days"]).any() and (found["days"] >= 0).all()


def test_models_that_are_not_sequential_have_no_rows():
    config = Config("BPR", "ml-100k", config_dict={"show_progress": False})
    assert describe_rows(config, None, None, None) == {}


def test_popular_items():
    assert popular_items(np.array([9, 1, 5, 5, 0, 2, 0, 0, 0, 0, 0])).nonzero()[0].tolist() == [2, 3]
    assert popular_items(np.array([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])).nonzero()[0].tolist() == [1]  # none without rows
