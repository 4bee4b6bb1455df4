"""The report of a conversion, printed as a table. The same numbers are in `<name>.report.json`.

Every line of the log is counted once, so these counts add up to `lines`:

- malformed
- bad_ids: an id that reads as a missing value
- bad_times: a time that is not positive, or in the future
- without_title: an item without a usable title
- low_rating, outside_window, repeated, below_k: dropped by the rules 3 to 5 of `dataset_scripts.convert`
- kept
"""

from tabulate import tabulate

_DROPPED = {
    "malformed": "malformed", "bad_ids": "id that reads as a missing value",
    "bad_times": "time not positive or in the future", "without_title": "item without usable title",
    "low_rating": "rating below the minimum", "outside_window": "outside the window", "repeated": "repeated (user, item)",
    "below_k": "below the k-core",
}  # fmt: skip


def print_report(report):
    """Prints a report; `report` is the dict that `dataset_scripts.convert.convert` returns."""
    rows = [("lines", report["lines"], "")]
    notes = {
        "malformed": "first in lines " + ", ".join(map(str, report["malformed_lines"])) if report["malformed"] else "",
        "below_k": "by round: " + ", ".join(map(str, report["k_core_rounds"])) if report["k_core_rounds"] else "",
        "outside_window": f"{report['start']} to {report['end']}",
        "bad_times": "units: " + ", ".join(f"{unit} {count:,}" for unit, count in report["time_units"].items()),
    }
    titled = f"{report['titled']:,} items with a title"
    rows += [("- " + label, report[key], notes.get(key, "")) for key, label in _DROPPED.items()]
    rows += [
        ("= kept", report["kept"], f"{report['first']} to {report['last']}"),
        ("users", report["users"], ""),
        ("items", report["items"], f"{report['items_sharing_title']:,} share a title; {report['distinct_titles']:,} titles"),
        ("ids percent-encoded", report["escaped_ids"], ""),
        ("density", f"{report['density']:.2e}", ""),
        *((part, report[part], "rows") for part in ("train", "valid", "test")),
        ("metadata lines", report["meta"], f"{report['meta_malformed']:,} malformed; {titled}"),
    ]
    if len(report["windows"]) > 1:
        rows += [("window from", start, f"{items:,} items") for start, items in report["windows"]]
    shown = [(label, f"{value:,}" if isinstance(value, int) else value, note) for label, value, note in rows]
    print(tabulate(shown, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True))
    for kind in ("inputs", "outputs"):
        print(tabulate([(kind[:-1], digest, name) for name, digest in report[kind].items()], tablefmt="plain"))
    print(f"written to {report['folder']}")
