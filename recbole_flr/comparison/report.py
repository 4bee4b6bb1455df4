"""One HTML file with everything: sentences, tables, pictures and ten users. It loads nothing, and all text in it is escaped."""

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup

import recbole_flr
from recbole_flr.comparison.plots import embeddable, pictures
from recbole_flr.comparison.summary import decimal, metric_name, sentences
from recbole_flr.comparison.table import Cell, Table, text_cell
from recbole_flr.result import commit_of

HERE = Path(__file__).parent
SHOWN_ITEMS = 5  # recommended items of a model for a user
LOOKED_AT = 3  # items that a factor looked at


@lru_cache(maxsize=None)
def paper_figures():
    """The content of `paper_figures.yaml`."""
    return yaml.safe_load((HERE / "paper_figures.yaml").read_text(encoding="utf-8"))


def paper_tables(dataset, study):
    """Tables of the paper that belong to a data set and a study. List of Table, each marked with its level."""
    found, data = [], paper_figures()
    for number, each in enumerate(data["tables"]):
        figures = [figure for figure in each["figures"] if figure["dataset"] == dataset]
        if (study or "main") not in each["studies"] or not figures:
            continue
        metrics = list(dict.fromkeys(figure["metric"] for figure in figures))
        systems = list(dict.fromkeys(figure["system"] for figure in figures))
        value = {(figure["system"], figure["metric"]): figure["value"] for figure in figures}
        rows = [
            [text_cell(system), *(Cell(decimal(value.get((system, metric))), value.get((system, metric))) for metric in metrics)]
            for system in systems
        ]
        where = "" if each["number"] == "-" else f", Table {each['number']}"
        found.append(
            Table(
                f"paper{number}",
                f"Published, {data['level']}: {each['title']}",
                ["system", *map(metric_name, metrics)],
                rows,
                [f"{data['paper']}{where}. Not measured here. Compare with the title metrics only."],
            )
        )
    return found


@dataclass
class Shown:
    """What a model recommended to a user.

    Attributes:
        label: of the row of the table.
        items: list of (title, whether it is right).
        rank: text.
        factors: list of (weight as text, [(title, share as text)]).
    """

    label: str
    items: list
    rank: str
    factors: list


def users(summary):
    """Ten users: list of dicts with `user`, `history` (titles, oldest first), `target` and `shown` (a Shown for each model)."""
    found = {}
    for row in summary.rows:
        run = row.runs[0]
        if not run.is_kept:
            continue
        for each in run.examples:
            entry = found.setdefault(
                each["row"],
                {
                    "user": each["user"],
                    "history": [item["title"] for item in each["history"]],
                    "target": each["target"]["title"],
                    "shown": [],
                },
            )
            items = [(item["title"], item["item"] == each["target"]["item"]) for item in each["recommended"][:SHOWN_ITEMS]]
            reached = each["rank"] <= run.result["data"]["items"]
            factors = []
            for factor in each.get("factors", []):
                looked = sorted(zip(entry["history"], factor["attention"]), key=lambda pair: -pair[1])[:LOOKED_AT]
                factors.append((f"{factor['weight']:.2f}", [(title, f"{share:.0%}") for title, share in looked]))
            entry["shown"].append(Shown(row.label, items, str(each["rank"]) if reached else "not reached", factors))
    return [found[number] for number in sorted(found)]


def render(title, summaries, shown, study=None, more=()):
    """Write the report.

    Args:
        title: of the page.
        summaries: list of Summary, one for each data set.
        shown: for each of them a list of Table.
        study: name of the study, or None.
        more: further pictures, such as those of a search: list of (caption, svg).

    Returns:
        str: HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    script = (HERE / "report.js").read_text(encoding="utf-8")
    parts = [
        {
            "summary": summary,
            "sentences": sentences(summary),
            "tables": own,
            "paper": paper_tables(summary.dataset, study),
            "pictures": [(caption, Markup(svg)) for caption, svg in pictures(summary, study)],
            "users": users(summary),
            "runs": [run for row in summary.rows for run in row.runs],
            "data": summary.rows[0].runs[0].result["data"],
        }
        for summary, own in zip(summaries, shown)
    ]
    searches = [(caption, Markup(embeddable(svg, f"search{number}"))) for number, (caption, svg) in enumerate(more)]
    return environment.get_template("report.html").render(
        title=title,
        parts=parts,
        version=recbole_flr.__version__,
        more=searches,
        commit=commit_of(HERE.parent),
        script=Markup(script),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        allowed=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
