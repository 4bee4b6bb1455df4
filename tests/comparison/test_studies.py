"""Which models a study has; tests of plans are in test_plan.py."""

from recbole_flr.comparison.studies import study_models


def test_cot_needs_a_pretrained_backbone():
    assert study_models("cost") == ["BIGRec", "LatentR3", "FLR"]
    assert study_models("longtail", "smollm2-135m") == ["BIGRec", "LatentR3", "FLR", "CoT"]
