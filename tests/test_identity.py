"""What makes two runs the same."""

import json

from conftest import TINY

from recbole_flr.config import Config
from recbole_flr.identity import KEY, WITHOUT_EFFECT, read_key, run_key


def key(folder, model="VSKNN", **options):
    return run_key(Config(model, "tiny", config_dict={**TINY, "data_path": str(folder), **options}))


def test_options_with_an_effect(session_data, tmp_path):
    first = key(session_data)
    assert key(session_data, show_progress=True, gpu_id="3", checkpoint_dir="there", checkpoint_every=3) == first
    assert first["processes"] == 1 and key(session_data, nproc=2)["processes"] == 2
    assert key(session_data, num_neighbors=3) != first and key(session_data, seed=1) != first
    assert not set(first["options"]) & WITHOUT_EFFECT and first["options"]["seed"] == 2020
    assert json.loads(json.dumps(first)) == first


def test_data(tiny_data):
    first = key(tiny_data)
    (tiny_data / "tiny" / "notes.txt").write_text("not part of the data set")
    assert key(tiny_data) == first
    file = tiny_data / "tiny" / "tiny.test.inter"
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert key(tiny_data)["data"] != first["data"]


def test_a_run_writes_its_key(trained, session_data):
    folder, _ = trained("VSKNN")
    assert read_key(folder) == key(session_data)
    (folder / KEY).write_text("{")
    assert read_key(folder) is None and read_key(folder / "none") is None


def test_what_a_run_decides_is_not_part_of_its_key(session_data):
    config = Config("FLRMix", "tiny", config_dict={**TINY, "data_path": str(session_data), "num_factors": "auto"})
    before = run_key(config)
    config.decide("num_factors", 4)
    assert run_key(config) == before and config.snapshot()["num_factors"] == 4 and config.planned()["num_factors"] == "auto"


def test_the_weights_that_a_run_starts_from(trained, session_data):
    folder, _ = trained("VSKNN")
    first, second = key(session_data), key(session_data, checkpoint=str(folder))
    assert first["start"] is None and second["start"] and second["options"] == first["options"]
    config = Config("VSKNN", "tiny", config_dict={**TINY, "data_path": str(session_data)})
    assert run_key(config, str(folder)) == second
