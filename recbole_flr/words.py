"""Words of the command line that ask for a comparison of several runs, and not for one run."""

COMPARISON = ("seeds", "jobs", "study", "out", "reuse", "reference")  # options of a comparison; a run has none of them


def wants_comparison(options):
    """Whether the options of the command line ask for a comparison.

    Args:
        options: dict, name -> text.
    """
    several = any("," in options.get(name, "") for name in ("model", "dataset"))
    return several or any(name in COMPARISON or "." in name for name in options)
