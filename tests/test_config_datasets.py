"""What a data set brings to the configuration: its split files, and the yaml file in its own folder."""

import json
import os

import pytest
from helpers_config import FOUR, refused, round_trip, values

from recbole_flr.config import Config
from recbole_flr.errors import ConfigError

# split files

def split_data_set(folder, name="mine", parts=("train", "valid", "test"), options=None):
    """Make empty split files, and the data set's own yaml file if `options` has its text. Returns the data_path."""
    (folder / name).mkdir(parents=True)
    for part in parts:
        (folder / name / f"{name}.{part}.inter").touch()
    if options is not None:
        (folder / name / f"{name}.yaml").write_text(options)
    return str(folder)


def test_split_files_are_recognised(tmp_path):
    path = split_data_set(tmp_path / "data")
    for model in FOUR + ["BPR"]:
        config = Config(model, "mine", config_dict={"data_path": path})
        assert config["benchmark_filename"] == ["train", "valid", "test"] and config["alias_of_item_id"] == ["item_id_list"]
        assert config["eval_args"]["split"] == {"LS": "valid_and_test"} and config["eval_args"]["order"] == "TO"
        assert config["title_escapes"] is False  # only the files of dataset_scripts have escapes
        assert values(round_trip(config)) == values(config)
    assert Config("FLR", "mine", config_dict={"data_path": path})["load_col"]["inter"][-1] == "item_id_list"
    assert Config("FLR", "mine", config_dict={"data_path": path, "eval_args": "{'mode': 'uni5'}"})["benchmark_filename"]


@pytest.mark.parametrize("parts", [(), ("train", "valid"), ("train", "test"), ("valid", "test")])
def test_all_three_split_files_are_needed(parts, tmp_path):
    config = Config("BPR", "mine", config_dict={"data_path": split_data_set(tmp_path / "data", parts=parts)})
    assert config["benchmark_filename"] is None and config["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]}
    assert config["alias_of_item_id"] is None


@pytest.mark.parametrize("given", [
    {"benchmark_filename": None}, {"benchmark_filename": ["a", "b", "c"]},
    {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}},
])
def test_a_split_that_the_user_gives_wins(given, tmp_path):
    path = split_data_set(tmp_path / "data")
    config = Config("BPR", "mine", config_dict={"data_path": path, **given})
    assert config["benchmark_filename"] == given.get("benchmark_filename") and config["alias_of_item_id"] is None
    (tmp_path / "my.yaml").write_text(json.dumps({**given, "data_path": path}))
    assert values(Config("BPR", "mine", ["my.yaml"])) == values(config)


def test_a_published_data_set_needs_no_files_to_be_known_as_split(tmp_path):
    """The download or the demo makes the files after the Config was made."""
    path = split_data_set(tmp_path / "data", "cds")
    for name in ("cds", "cds-2023"):
        assert values(Config("FLR", name)) == {**values(Config("FLR", "cds")), "dataset": name,
                                               "data_path": os.path.join("dataset", name)}
    there = Config("FLR", "cds", config_dict={"data_path": path})
    assert values(there) == {**values(Config("FLR", "cds")), "data_path": os.path.join(path, "cds")}
    assert there["title_escapes"] is True and there["item_noun"] == "album" and there["benchmark_filename"]


def test_split_files_leave_ml_100k_to_recbole(tmp_path):
    """RecBole reads it from its own folder, whatever is in data_path."""
    path = split_data_set(tmp_path / "data", "ml-100k")
    assert Config("FLR", "ml-100k", config_dict={"data_path": path})["benchmark_filename"] is None


# the yaml file in the data set's own folder

def test_the_file_in_the_data_sets_folder_comes_last_of_the_defaults(tmp_path):
    options = "item_noun: song\nnum_beams: 15\ntopk: [3]\nvalid_metric: NDCG@3\nmade_up: 3\nnv: x\n"
    path = split_data_set(tmp_path / "data", "toys", options=options)
    config = Config("FLR", "toys", config_dict={"data_path": path})
    assert (config["item_noun"], config["num_beams"], config["topk"]) == ("song", 15, [3])
    assert config["nv"] == "x"  # an option of another model (Caser) is not checked
    assert Config("FLR", "toys", config_dict={"data_path": path, "item_noun": "toy"})["item_noun"] == "toy"
    with pytest.raises(ConfigError, match="nv: found 'x', expected int >= 1"):
        Config("Caser", "toys", config_dict={"data_path": path})


@pytest.mark.parametrize("options, message", [
    ("title_escapes: 1", "title_escapes: found 1, expected bool"),
    ("num_beams: 0", "num_beams: found 0, expected int >= 1. Beams"),
    ("benchmark_filename: train", "benchmark_filename: found 'train', expected list or null"),
    ("item_noun: 5", "item_noun: found 5, expected str"), ("use_gpu: 3", "use_gpu: found 3, expected bool"),
    ("LIST_SUFFIX: 3", "LIST_SUFFIX: found 3, expected text"), ("5: 3", "found option 5, expected a name"),
    ("item_noun: [", "toys.yaml is not yaml"), ("- item_noun", "found a list in .*toys.yaml"),
    ("seed: !!python/object/apply:os.getpid []", "toys.yaml is not yaml"),
])
def test_a_wrong_file_in_the_data_sets_folder_is_refused(options, message, tmp_path):
    path = split_data_set(tmp_path / "data", "toys", options=options)
    assert "toys.yaml" in refused(message, "FLR", "toys", data_path=path)


def test_a_converted_data_set_brings_its_own_options(tmp_path):
    """A data set of any name uses the split in its files."""
    import gzip
    import json as json_

    from dataset_scripts.convert import convert
    from recbole_flr.data.catalog import Catalog
    from recbole_flr.data.loading import load_dataset

    reviews = [{"reviewerID": f"u{u}", "asin": f"a{i}", "overall": 5.0, "unixReviewTime": 1510000000 + 86400 * i + u}
               for u in range(6) for i in range(6)]
    meta = [{"asin": f"a{i}", "title": f"Book {i}" if i else "A\\tB \\ C"} for i in range(6)]
    for name, rows in (("reviews", reviews), ("meta", meta)):
        with gzip.open(tmp_path / f"{name}.gz", "wt") as file:
            file.writelines(json_.dumps(row) + "\n" for row in rows)
    convert(tmp_path / "reviews.gz", "books", tmp_path / "data", meta=tmp_path / "meta.gz", min_items=0)
    config = Config("FLR", "books", config_dict={"data_path": str(tmp_path / "data"), "state": "ERROR"})
    assert config["benchmark_filename"] == ["train", "valid", "test"] and config["title_escapes"] is True
    dataset = load_dataset(config)
    assert dataset.file_size_list == [24, 3, 3]
    titles = Catalog.from_dataset(config, dataset).titles
    assert titles[dataset.token2id("item_id", "a0")] == "A\\tB \\ C"
    Config("FLR", "books", config_dict=config.snapshot())
