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

from recbole_flr.errors import printable
from recbole_flr.files import size_text

_DROPPED = {
    "malformed": "malformed", "bad_ids": "id that reads as a missing value",
    "bad_times": "time not positive or in the future", "without_title": "item without usable title",
    "low_rating": "rating below the minimum", "outside_window": "outside the window", "repeated": "repeated (user, item)",
    "below_k": "below the k-core",
}  # fmt: skip


def print_report(report):
    """Prints a report; `report` is the dict that `dataset_scripts.convert.convert` returns."""
    print_counts(report)
    for kind in ("inputs", "outputs"):
        rows = [(kind[:-1], digest, printable(name)) for name, digest in report[kind].items()]
        print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    print(printable(f"written to {report['folder']}"))


def print_counts(report, file=None):
    """Prints the counts of a report as a table. The report of a conversion that was refused has the first of them only.

    Args:
        report (dict): see `print_report`.
        file: where the table goes; None: stdout.
    """
    notes = {
        "malformed": _joined(
            "first in lines " + ", ".join(map(str, report.get("malformed_lines", ()))) if report.get("malformed") else "",
            f"{report.get('unread_times'):,} with a time that cannot be read" if report.get("unread_times") else ""),
        "below_k": "by round: " + ", ".join(map(str, report["k_core_rounds"])) if report.get("k_core_rounds") else "",
        "outside_window": f"{report.get('start')} to {report.get('end')}",
        "bad_times": "units: " + ", ".join(f"{unit} {count:,}" for unit, count in report.get("time_units", {}).items()),
    }
    rows = [("lines", report.get("lines"), "")]
    rows += [("- " + label, report.get(key), notes.get(key, "")) for key, label in _DROPPED.items()]
    share = f"{report.get('items_sharing_title', 0):,} share a title; {report.get('distinct_titles', 0):,} titles"
    of_items = f"{report.get('meta_malformed', 0):,} malformed; {report.get('titled', 0):,} items with a title"
    rows += [
        ("= kept", report.get("kept"), f"{report.get('first')} to {report.get('last')}"),
        ("users", report.get("users"), ""),
        ("items", report.get("items"), share),
        ("ids percent-encoded", report.get("escaped_ids"), ""),
        ("density", f"{report['density']:.2e}" if "density" in report else None, ""),
        *((part, report.get(part), "rows") for part in ("train", "valid", "test")),
        ("disk for tables", _size(report.get("disk_tables")), "at most; less what --memory-limit holds"),
        ("disk for files", _size(report.get("disk_output")), "estimated before they were written"),
        ("metadata lines", report.get("meta"), of_items),
    ]
    if len(report.get("windows", ())) > 1:
        rows += [("window from", start, f"{items:,} items") for start, items in report["windows"]]
    shown = [(label, f"{value:,}" if isinstance(value, int) else value, note) for label, value, note in rows if value is not None]
    if shown:
        print(tabulate(shown, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True), file=file)


def _size(number):
    return None if number is None else size_text(number)


def _joined(*notes):
    return "; ".join(filter(None, notes))
