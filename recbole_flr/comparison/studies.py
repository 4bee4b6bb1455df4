"""The studies of the paper (Factorized Latent Reasoning, arXiv 2604.26760) as lists of variants, each an ordinary run."""

from dataclasses import dataclass, field

from recbole_flr.errors import ConfigError

STUDIES = {  # name -> what the report calls it
    "ablation": "Ablation: one part switched off at a time (as in Table 3)",
    "grpo": "Reinforcement: without, LatentR3's and FLR's (as in Table 4)",
    "factors": "Number of factors (as in Figure 8)",
    "refinements": "Number of refinements",
    "cost": "Cost of ranking (as in Figure 9)",
    "longtail": "Popular items and the rest (as in Figure 7)",
}
FACTORS, REFINEMENTS = range(1, 7), range(1, 5)
ABLATIONS = {  # model -> label of a variant -> its options
    "FLR": {
        "without orthogonality": {"orthogonality_loss": "False"},
        "without diversity": {"diversity_loss": "False"},
        "without sparsity": {"sparsity_loss": "False"},
        "without regularisers": {"orthogonality_loss": "False", "diversity_loss": "False", "sparsity_loss": "False"},
        "one factor": {"num_factors": "1"},
        "one refinement": {"num_refinements": "1"},
        "without GRPO": {"stages": "sft"},
    },
    "FLRMix": {
        "one factor": {"num_factors": "1"},
        "factors summed, no mixture": {"mixture": "False"},
        "one refinement": {"num_refinements": "1"},
        "without orthogonality": {"orthogonality_weight": "0"},
        "without diversity": {"diversity_weight": "0"},
        "without gate loss": {"gate_balance": "0"},
        "without memory": {"memory": "null"},
        "memory: transitions only": {"memory": "transitions"},
        "memory: neighbors only": {"memory": "neighbors"},
        "item vectors without text": {"item_text": "none"},
        "without ids": {"use_ids": "False"},
        "weights not fitted": {"fit_weights": "False"},
    },
}


@dataclass
class Variant:
    """One row of a study.

    Attributes:
        label: of the row.
        options: name -> text, on top of those that all rows share.
        start: label of the row whose weights the run starts from, or None.
        stage: name of the stage whose result is shown, or None for the one that the run keeps.
    """

    label: str
    options: dict = field(default_factory=dict)
    start: str | None = None
    stage: str | None = None


def study_models(study, backbone="compact"):
    """The models of a study if none are given. CoT is among them where the backbone is a pretrained one, which it needs."""
    if study in ("cost", "longtail"):
        return ["BIGRec", "LatentR3", "FLR", *(["CoT"] if backbone != "compact" else [])]
    return ["FLR"]


def variants(study, model):
    """The rows that a model has in a study; the model itself if there is no study.

    Raises:
        ConfigError: for a model that does not have the parts that the study varies.
    """
    if study in (None, "cost", "longtail"):
        return [Variant(model)]
    known = ("FLR", "FLRMix")
    if model not in known:
        raise ConfigError(
            f"study: found {study} of {model}, expected {' or '.join(known)}: only they have the parts that it varies"
        )
    if study == "ablation":
        return [Variant(model), *(Variant(f"{model}, {name}", options) for name, options in ABLATIONS[model].items())]
    if study == "factors":
        return [Variant(f"{model}, K={number}", {"num_factors": str(number)}) for number in FACTORS]
    if study == "refinements":
        return [Variant(f"{model}, N={number}", {"num_refinements": str(number)}) for number in REFINEMENTS]
    supervised = f"{model}, supervised"
    return [
        Variant(supervised, {"stages": "sft"}),
        *(
            Variant(f"{model} + {name} GRPO", {"stages": "grpo", "grpo": grpo}, supervised, "grpo")
            for name, grpo in (("LatentR3's", "latentr3"), ("FLR's", "flr"))
        ),
    ]
