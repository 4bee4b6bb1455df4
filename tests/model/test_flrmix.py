"""FLRMix: its loss, ranking, explanation and stages, every option that switches a part off, and bad or little data."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import TINY_OPTIONS
from helpers_data import ranking_parts

import recbole_flr
from recbole_flr.command import recommend_main
from recbole_flr.errors import ConfigError
from recbole_flr.model import blend, flrmix
from recbole_flr.model.blend import REPEAT
from recbole_flr.training.mixture import MixtureTraining

ALONE = {"memory": None, "fit_weights": False, "repeat_weight": 0.0}  # the mixture ranks without anything else


def batch_of(loaders, part=0):
    batch = next(iter(loaders[part]))
    return batch if part == 0 else batch[0]


@pytest.mark.parametrize("mixture", [True, False])
def test_the_loss_is_minus_the_log_probability_of_the_target(build, mixture):
    config, model, loaders = build("FLRMix", **ALONE, mixture=mixture)
    model.double().eval()
    batch = batch_of(loaders)
    scores = model.full_sort_predict(batch)
    torch.testing.assert_close(scores[:, 1:].exp().sum(1), torch.ones(len(batch), dtype=torch.float64))
    target = batch[model.POS_ITEM_ID]
    parts = model.losses(batch)
    torch.testing.assert_close(parts["item"].value, -scores.gather(1, target.unsqueeze(1)).mean())
    torch.testing.assert_close(model.predict(batch), scores.gather(1, target.unsqueeze(1)).squeeze(1))
    assert torch.isclose(model.calculate_loss(batch), sum(part.weighted for part in parts.values()))


def test_rows_that_are_ranked_in_groups_of_similar_length_keep_their_scores(build, monkeypatch):
    _, model, loaders = build("FLRMix")
    model.double().eval()
    batch = batch_of(loaders)
    expected = torch.cat([model.full_sort_predict(batch[[row]]) for row in range(len(batch))])
    monkeypatch.setattr(flrmix, "ROWS_AT_ONCE", 3)
    read = []
    monkeypatch.setattr(model, "_read", lambda part, read_all=model._read: (read.append(part[model.ITEM_SEQ]), read_all(part))[1])
    with torch.no_grad():
        torch.testing.assert_close(model.full_sort_predict(batch), expected)
    assert len(read) > 1 and all(len(part) <= 3 for part in read)
    assert sum(part.numel() for part in read) < batch[model.ITEM_SEQ].numel()  # less padding


def test_the_scores_of_a_target_and_the_reward(build):
    """`score_target` of the thought itself is the ranking's log-probability; the reward is the NDCG of a sorted list."""
    _, model, loaders = build("FLRMix", **ALONE)
    model.double().eval()
    batch = batch_of(loaders)
    target = batch[model.POS_ITEM_ID]
    context = model.read_context(batch, prompt_only=True)
    embedding = model.think(context).embedding
    noise = torch.randn(len(batch), 3, embedding.shape[1], dtype=torch.float64)
    noise[:, 0] = 0
    scored = model.score_target(context, embedding.unsqueeze(1) + noise, target, greedy=True)
    expected = model.full_sort_predict(batch)
    torch.testing.assert_close(scored.log_probs[:, 0, 0], expected.gather(1, target.unsqueeze(1)).squeeze(1))
    for row in range(len(batch)):
        rank = expected[row].argsort(descending=True).tolist().index(target[row].item())
        assert scored.reward[row, 0].item() == pytest.approx(1 / math.log2(rank + 2) if rank < model.ranking.cutoff else 0.0)
        assert scored.match[row, 0].item() == (rank == 0)
    assert (scored.log_probs[:, 1] - scored.log_probs[:, 0]).abs().min() > 0  # the noise moves the ranking
    assert scored.mask.all() and scored.log_probs.shape == (len(batch), 3, 1)


def test_the_reinforcement_moves_the_reasoner_alone(trained):
    folder, result = trained("FLRMix", stages="sft,grpo", grpo_epochs=2, grpo_learning_rate=0.01, fit_weights=False, memory=None)
    assert set(result["stages"]) == {"sft", "grpo"}
    from recbole_flr.training import checkpoint

    before, after = (checkpoint.read(folder / f"{name}.safetensors")[0] for name in ("sft", "grpo"))
    moved = {name for name in before if name.startswith("model.") and not torch.equal(before[name], after[name])}
    assert all(name.startswith("model.reasoner.") for name in moved) and moved
    assert result["test_result"] == result["stages"][result["kept"]]["test_result"]


@pytest.mark.parametrize("options", [
    {"num_factors": 1}, {"mixture": False}, {"num_refinements": 1}, {"gate_balance": 0.0}, {"memory": None},
    {"memory": ["transitions"]}, {"memory": "neighbors"}, {"item_text": "none"}, {"use_ids": False}, {"fit_weights": False},
    {"orthogonality_weight": 0.0, "diversity_weight": 0.0}, {"attend_thought": False},
], ids=str)
def test_each_part_can_be_switched_off(build, options):
    _, model, loaders = build("FLRMix", **options)
    batch = batch_of(loaders)
    model.calculate_loss(batch).backward()
    model.before_validation(loaders[1])
    with torch.no_grad():
        scores = model.eval().full_sort_predict(batch)
    assert scores[:, 1:].isfinite().all() and scores.shape == (len(batch), model.n_items)
    parts = set(model.losses(batch))
    assert ("balance" in parts) == ("gate_balance" not in options)
    assert ("orthogonality" in parts) == ("orthogonality_weight" not in options)
    if options.get("num_factors") == 1 or options.get("mixture") is False:
        assert model._distribution(model.think(model.read_context(batch)))[0].shape[1] == 1
    assert (model.vectors.ids is None) == (options.get("use_ids") is False)
    assert (model.vectors.texts is None) == (options.get("item_text") == "none")
    assert model.ranking.weights == model.ranking.start_weights or options.get("fit_weights") is not False
    assert model.reasoner.num_refinements == options.get("num_refinements", 2)
    assert model.reasoner.attend_thought == options.get("attend_thought", True)
    memory = options.get("memory", ["transitions", "neighbors"])
    assert set(ranking_parts(model, batch)) == {"mixture", REPEAT, *([memory] if isinstance(memory, str) else memory or [])}


def test_neither_ids_nor_text(build):
    with pytest.raises(ConfigError, match="use_ids: found False, and item_text none; expected at least one"):
        build("FLRMix", use_ids=False, item_text="none")


@pytest.mark.parametrize("options, message", [
    ({"memory": [["transitions"]]}, "expected a list of transitions, neighbors"),
    ({"memory": "transition"}, "memory: found 'transition', expected a list of transitions, neighbors"),
    ({"hidden_size": 10, "n_heads": 4}, "hidden_size: found 10, expected an even number that n_heads = 4 divides"),
    ({"item_text": "no/such/encoder"}, "item_text: found 'no/such/encoder'"),
])
def test_bad_options(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build("FLRMix", **options)


def test_the_gate_is_asked_to_decide_in_the_second_half(build):
    _, model, loaders = build("FLRMix", epochs=8)
    stage = MixtureTraining(model, {**build("FLRMix")[0].final_config_dict, "epochs": 8, "eval_step": 1})
    found = []
    for epoch in range(8):
        stage.begin_epoch(epoch)
        found.append(model.sharpness)
    assert found == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75]
    assert "sharpness" in stage.losses(batch_of(loaders))


def test_the_regularisers_and_the_gate_count_with_their_weights(build):
    _, model, loaders = build("FLRMix", orthogonality_weight=0.3, diversity_weight=0.7, gate_balance=0.5)
    batch = batch_of(loaders)
    thought = model.think(model.read_context(batch))
    alpha, terms = thought.state.alpha.tolist(), thought.state.regularisers()
    mean = [sum(row[k] for row in alpha) / len(alpha) for k in range(3)]
    entropy = -sum(a * math.log(a) for row in alpha for a in row) / len(alpha)
    model.sharpness = 0.25
    found = {name: part.weighted.item() for name, part in model.own_losses(thought, batch[model.POS_ITEM_ID]).items()}
    assert found == pytest.approx({
        "orthogonality": 0.3 * terms["orthogonality"].item(), "diversity": 0.7 * terms["diversity"].item(),
        "balance": 0.5 * sum(m * math.log(m) for m in mean), "sharpness": 0.5 * 0.25 * entropy,
    })


def test_the_tables_of_the_memory_are_those_of_the_models_that_only_count(build):
    shared = {"forward_decay": 0.6, "row_power": 0.7, "column_power": 0.3, "recency_decay": 0.5}
    near = {"num_neighbors": 3, "sample_size": 12, "order_decay": 0.9}
    _, model, loaders = build("FLRMix", **shared, **near, backward_weight=0.4, neighbor_backward_weight=0.2)
    rules = build("SequentialRules", **shared, backward_weight=0.4, repeat_weight=1.0)[1]
    users = build("VSKNN", **near, backward_weight=0.2, repeat_weight=1.0, similarity="dot", weighting="harmonic",
                  score_weighting="same")[1]
    batch = batch_of(loaders)
    for name, other in (("transitions", rules), ("neighbors", users)):
        votes = model.memory.tables[name].votes(batch[model.ITEM_SEQ].numpy()).toarray()
        torch.testing.assert_close(torch.from_numpy(votes).float(), other.full_sort_predict(batch))
        assert votes.any()


def test_the_weights_are_chosen_on_the_validation_rows(build, monkeypatch):
    """No other value of one weight is better there, and a checkpoint has the weights."""
    monkeypatch.setattr(blend, "SWEEPS", 50)  # until nothing improves
    _, model, loaders = build("FLRMix", transitions_weight=0.01, neighbors_weight=0.01)
    given = dict(model.ranking.weights)
    model.before_validation(loaders[1])
    chosen = dict(model.ranking.weights)
    assert chosen != given and list(chosen) == ["transitions", "neighbors", REPEAT]
    assert model.other_parameter()["weights"] == chosen

    def ndcg(weights):
        total, rows = 0.0, 0
        model.ranking.weights = weights
        for batch, *_ in loaders[1]:
            with torch.no_grad():
                scores = model.full_sort_predict(batch)
            own = scores.gather(1, batch[model.POS_ITEM_ID].unsqueeze(1))
            rank = (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
            total, rows = total + torch.where(rank < 10, 1 / (rank + 2).log2(), 0).sum().item(), rows + len(batch)
        return total / rows

    best = ndcg(chosen)
    assert best > ndcg(given) + 0.01
    for name, weight in chosen.items():
        for factor in (0, 0.5, 0.7, 1.4, 2):
            assert ndcg({**chosen, name: factor * weight}) <= best + 1e-4


def test_recommend_says_where_a_score_comes_from(trained):
    folder, _ = trained("FLRMix")
    answer = recbole_flr.recommend(folder, ["Robot", "Robot Wars"], k=4)
    assert len(answer["factors"]) == 3
    assert sum(factor["weight"] for factor in answer["factors"]) == pytest.approx(1, abs=1e-5)
    for item in answer["items"]:
        assert set(item["parts"]) == {"mixture", "transitions", "neighbors", REPEAT}
        assert sum(item["parts"].values()) == pytest.approx(item["score"], rel=1e-4)
        assert {entry["item"] for entry in item["after"]} <= {"i0", "i1"}
        assert not item["after"] or sum(entry["share"] for entry in item["after"]) == pytest.approx(1, abs=1e-5)
    assert any(item["after"] for item in answer["items"])


def test_the_command_prints_where_a_score_comes_from(trained, capsys):
    folder, _ = trained("FLRMix")
    assert recommend_main(["--checkpoint", str(folder), "--history", "Robot", "--k", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("score: mixture -") == 3 and "after: Robot (100%)" in printed and "factor 3: weight" in printed


def test_a_run_that_was_cut_short_goes_on_to_the_same_result(trained, session_data, monkeypatch):
    from recbole_flr.training.staged import StagedTrainer

    _, expected = trained("FLRMix", epochs=3)
    step = StagedTrainer._train_epoch
    monkeypatch.setattr(StagedTrainer, "_train_epoch", lambda self, data, epoch, *a, **b: (
        (_ for _ in ()).throw(KeyboardInterrupt) if epoch == 2 and not self._resumed_once else step(self, data, epoch, *a, **b)))
    monkeypatch.setattr(StagedTrainer, "_resumed_once", False, raising=False)

    Path("again").mkdir()
    monkeypatch.chdir("again")
    options = {**TINY_OPTIONS["FLRMix"], "epochs": 3, "data_path": str(session_data)}
    with pytest.raises(KeyboardInterrupt):
        recbole_flr.run_recbole_flr("FLRMix", "tiny", config_dict=options)
    run, = Path("saved").iterdir()
    monkeypatch.setattr(StagedTrainer, "_resumed_once", True)
    assert recbole_flr.run_recbole_flr(config_dict={"resume": str(run)}) == expected


def test_a_run_without_epochs_is_validated_and_chooses_its_weights(trained):
    """`--checkpoint=RUN --epochs=0` with other options of the ranking: a new ranking by the same weights of the model."""
    folder, _ = trained("FLRMix")
    options = {"checkpoint": str(folder), "stages": "sft", "epochs": 0, "transitions_weight": 0.1, "checkpoint_dir": "again"}
    result = recbole_flr.run_recbole_flr("FLRMix", "tiny", config_dict=options)
    again, = Path("again").iterdir()
    _, model, _, _, valid, _ = recbole_flr.load_data_and_model(again)
    chosen = dict(model.ranking.weights)
    model.before_validation(valid)
    assert model.ranking.weights == chosen != model.ranking.start_weights
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"] > 0
    assert json.loads((again / "result.json").read_text())["best_valid_score"] == result["best_valid_score"]


def test_options_of_the_ranking_can_be_changed_on_a_trained_run(trained):
    folder, _ = trained("FLRMix")
    _, model, *_ = recbole_flr.load_data_and_model(folder)
    stored = dict(model.ranking.weights)
    _, fewer, *_ = recbole_flr.load_data_and_model(folder, {"memory": ["neighbors"]})
    assert fewer.ranking.weights == {"neighbors": stored["neighbors"], REPEAT: stored[REPEAT]}
    given = {"fit_weights": False, "transitions_weight": 7.0, "neighbors_weight": 1.5, "repeat_weight": 5.0}
    _, fixed, *_ = recbole_flr.load_data_and_model(folder, given)
    assert fixed.ranking.weights == {"transitions": 7.0, "neighbors": 1.5, REPEAT: 5.0}


def test_sampled_negatives_leave_the_weights_as_given(build):
    protocol = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni5"}
    _, model, loaders = build("FLRMix", eval_args=protocol, title_metrics=False)
    before = dict(model.ranking.weights)
    model.before_validation(loaders[1])
    assert model.ranking.weights == before


def test_the_gate_does_not_decide_in_the_reinforcement_stage(build):
    """Otherwise the loss would depend on where the stage before stopped, and a resumed run would be another one."""
    _, model, _ = build("FLRMix")
    model.sharpness = 0.5
    model.freeze_encoder()
    assert model.sharpness == 0


def test_the_result_names_the_parts_of_the_loss(trained):
    folder, _ = trained("FLRMix", state="INFO")
    log = next(Path("log").rglob("*.log")).read_text(encoding="utf-8")
    for name in ("item:", "orthogonality:", "diversity:", "balance:", "Weights of the ranking: transitions"):
        assert name in log
    assert json.loads((folder / "result.json").read_text())["stages"][-1]["name"] == "sft"


def test_a_frozen_encoder_has_no_dropout_in_training(build):
    _, model, loaders = build("FLRMix", dropout=0.5)
    batch = batch_of(loaders)

    def difference():
        model.train()
        one, other = (model.read_context(batch, prompt_only=True) for _ in range(2))
        queries = [model.head.queries(one.hidden[:, 0], model.think(one).state)[0] for _ in range(2)]
        return (one.hidden - other.hidden).abs().max(), (queries[0] - queries[1]).abs().max()

    assert all(value > 1e-3 for value in difference())
    model.freeze_encoder()
    assert all(value == 0 for value in difference())
    assert model.reasoner.training
