"""Popularity ranking on the same rows that the models get: every recommender should do better.

    python -m benchmarks.popularity --dataset=toys_demo

An item's score is how often it is a target in the training rows. Ranks, masks and metrics are those of RecBole for a sequential
model. (RecBole's own Pop is a general model, which is evaluated in another way.) "new items" are the rows whose target is not in the
history. The options are those of a run.
"""

import sys

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_flr.command import parse_arguments
from recbole_flr.comparison.slices import metric_of_rows, slices
from recbole_flr.config import Config
from recbole_flr.data.catalog import Catalog, training_popularity
from recbole_flr.data.loading import load_dataset, split
from recbole_flr.exit_status import one_line
from recbole_flr.rows import describe_ranked_rows
from recbole_flr.trainer import with_safe_checkpoints


class Popularity(SequentialRecommender):
    """Gives every user the same ranking."""

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.counts = torch.nn.Parameter(torch.from_numpy(training_popularity(dataset)).float())

    def full_sort_predict(self, interaction):
        """Scores of all items: [B, n_items]."""
        return self.counts.detach().repeat(len(interaction), 1)


def main(arguments):
    """Print the results of validation and test. Returns those of the test."""
    from recbole.trainer import Trainer

    if "--help" in arguments:
        return print(__doc__)
    options = {"dataset": "toys_demo", "state": "ERROR", "eval_batch_size": "512", **parse_arguments(arguments)}
    config = Config(Popularity, options.pop("dataset"), config_dict=options)
    dataset = load_dataset(config)
    train_data, valid_data, test_data = split(config, dataset)
    trainer = with_safe_checkpoints(Trainer)(config, Popularity(config, train_data._dataset))
    trainer.report_titles(Catalog.from_dataset(config, train_data._dataset).title_ids)
    trainer.eval_collector.data_collect(train_data)
    for name, data in (("valid", valid_data), ("test", test_data)):
        result = trainer.evaluate(data, load_best_model=False)
        print(name, dict(result))
        rows = describe_ranked_rows(config, dataset, train_data, data, trainer.ranks)
        # `slices` reads arrays of these names, whichever rows they belong to
        ranks = {f"test_{array}": values for array, values in {**trainer.ranks, **rows}.items()}
        new = slices(ranks).get("new items")
        if new is not None:
            of_rows = {metric: metric_of_rows(ranks, metric) for metric in result}
            found = {metric: values[new].mean() for metric, values in of_rows.items() if values is not None}
            digits = config["metric_decimal_place"]
            print(f"{name}, new items", {metric: round(float(value), digits) for metric, value in found.items()})
    return result


if __name__ == "__main__":
    with one_line("benchmarks.popularity") as status:
        main(sys.argv[1:])
    sys.exit(status.code)
