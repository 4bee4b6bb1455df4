"""The files of a data set: samples, split, ids, and the columns of the items."""

import json
import re

import numpy as np

from dataset_scripts import disk, rules
from dataset_scripts.writing import as_bytes, fit_id, numbers, seconds, write_lines, write_rows
from recbole_flr.data.atomic import escape
from recbole_flr.errors import DataError

# RecBole options of the data set, for recbole_flr.config: the split is in the files, and titles are escaped.
OPTIONS = (
    "benchmark_filename: [train, valid, test]", "alias_of_item_id: [item_id_list]", "title_escapes: True",
    "eval_args: {split: {LS: valid_and_test}, order: TO, group_by: user, mode: full}",
)  # fmt: skip
PARTS = ("train", "valid", "test")
SAMPLES_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
_PRICE = re.compile(r"\s*\$?\s*([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?)\s*")


def write_set(database, report, columns, folder, name, max_history, split, ratios):
    """Makes the samples and the split (rules 7 and 8), and writes all files but the report.

    Args:
        database (Database): with the tables `reviews` and `items`; the first is dropped when it is no longer needed.
        report (dict): gets the counts and the SHA-256 of each output.
        columns (dict): the kept reviews, as `dataset_scripts.tables.keep_reviews` returns them.
        folder (Path): an existing folder.
        name, max_history, split, ratios: as for `dataset_scripts.convert.convert`.

    Raises:
        DataError: too few samples for a part, or ids that do not fit into memory.
    """
    time = columns["time"]
    user_ids, user = _users(database, columns["row"], columns["user"], report["lines"])
    item_ids, item, item_lines, counts = kept_items(database, columns["item"])
    ratings = numbers(columns["rating"]) if "rating" in columns else None
    database.run("DROP TABLE reviews")
    order, targets, before = rules.samples(user, time)
    parts = rules.split(split, ratios, user[order][targets])
    for part, rows, ratio in zip(PARTS, parts, ratios if split == "ratio" else (1, 1, 1)):
        if ratio and not len(rows):
            raise too_few(len(targets), part)
    report.update(first=rules.iso(rules.from_microseconds(time.min())), last=rules.iso(rules.from_microseconds(time.max())))
    report.update(users=len(user_ids), items=len(item_ids))
    report.update({key: counts[key] for key in ("distinct_titles", "items_sharing_title")})
    report["escaped_ids"] = counts["escaped_ids"] + sum(1 for text in user_ids if fit_id(text) != text)
    report["density"] = len(user) / (len(user_ids) * len(item_ids))

    users = as_bytes(map(fit_id, user_ids))
    items = as_bytes(item_ids)
    means = (float(np.char.str_len(ids).mean()) for ids in (users, items))
    in_histories = int(np.minimum(before, max_history).sum())
    report["disk_output"] = disk.samples(len(targets), in_histories, len(user), *means) + sum(map(len, item_lines))
    disk.check(folder, report["disk_output"], "the files of the data set")
    followed = followed_by_blank(items)
    user_of, item_of, time_of = user[order], item[order], time[order]
    outputs = {}
    for part, rows in zip(PARTS, parts):
        target, n_before = targets[rows], before[rows]

        def history(chosen, target=target, n_before=n_before):  # [rows, bytes]: the items before each target
            back = np.arange(min(max_history, int(n_before.max(initial=1))), 1, -1)
            at = target[chosen, None] - back
            older = np.where(n_before[chosen, None] >= back, item_of[np.maximum(at, 0)], len(items))
            return history_bytes(items, followed, older, item_of[target[chosen] - 1])

        outputs[f"{name}.{part}.inter"] = write_rows(
            folder / f"{name}.{part}.inter", SAMPLES_HEADER,
            [lambda chosen, target=target: users[user_of[target[chosen]]], history,
             lambda chosen, target=target: items[item_of[target[chosen]]],
             lambda chosen, target=target: seconds(time_of[target[chosen]])],
            len(target),
        )  # fmt: skip
        report[part] = len(target)
    fields = [lambda chosen: users[user[chosen]], lambda chosen: items[item[chosen]]]
    if ratings is not None:
        fields.append(lambda chosen: ratings[chosen])
    fields.append(lambda chosen: seconds(time[chosen]))
    outputs[f"{name}.inter"] = write_rows(folder / f"{name}.inter", inter_header(ratings is not None), fields, len(user))
    report["outputs"] = {**outputs, **write_items(folder, name, item_lines)}


def too_few(n_samples, part):
    """The DataError for a part without samples."""
    return DataError(f"only {n_samples} samples remain, too few for a {part} part; lower --k or widen the window")


def write_items(folder, name, item_lines):
    """Writes the files of the items and of the options. Returns a dict: name -> SHA-256."""
    return {f"{name}.item": write_lines(folder / f"{name}.item", item_lines),
            f"{name}.yaml": write_lines(folder / f"{name}.yaml", OPTIONS)}  # fmt: skip


def inter_header(with_rating):
    """The first line of the file of all kept reviews."""
    return "user_id:token\titem_id:token" + "\trating:float" * with_rating + "\ttimestamp:float"


def followed_by_blank(items):
    """Each item ([I] bytes) with a blank behind it; the last entry is empty."""
    return np.append(np.char.add(items, b" "), b"")


def history_bytes(items, followed, older, last):
    """Histories as lines hold them: [rows, bytes] uint8.

    Args:
        items: [I] bytes, the ids.
        followed: of `followed_by_blank`.
        older: [rows, n] places of the items before the last one, the oldest first; I where there is none.
        last: [rows] place of the last item.
    """
    return np.concatenate([_flat(followed[older]), _flat(items[last])], axis=1)


def _flat(texts):
    """[rows, n] bytes -> [rows, n * width] uint8."""
    return np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), -1)


def _users(database, row, user, n_lines):
    """Ids of the kept users, in the order of their first reviews; and [R] the place of each review's user in that list."""
    distinct, user = np.unique(user, return_inverse=True)
    user = user.reshape(-1)
    ids, same = database.of_codes("user", row, user, n_lines)
    if not same.all():
        raise DataError("two users have the same 64-bit hash, a chance of one in millions; rename one of them")
    by_first = np.argsort(rules.first_places(user))
    place = np.empty_like(by_first)
    place[by_first] = np.arange(len(by_first))
    return ids[by_first].tolist(), place[user]


def kept_items(database, item):
    """The kept items.

    Returns:
        tuple: ids in the order of the metadata; [R] the place of each review's item in that list; the lines of the `.item` file;
        a dict of counts for the report.
    """
    kept, inverse = np.unique(item, return_inverse=True)  # codes are in metadata order
    table = database.arrays("""SELECT item, title, brand, category, price FROM items JOIN kept ON items.rowid = kept.value
        ORDER BY kept.value""", kept=kept)  # fmt: skip
    raw, titles, brands, categories, prices = (column.tolist() for column in table.values())
    ids = [fit_id(text) for text in raw]
    of_title = {}
    for title in titles:
        of_title[title] = of_title.get(title, 0) + 1
    fields = {"item_id:token": ids, "title:token": [escape(title) for title in titles],
              "brand:token": [escape(_brand(brand)) for brand in brands],
              "categories:token_seq": list(map(_categories, categories)),
              "price:float": list(map(_price, prices))}  # fmt: skip
    fields = {field: values for field, values in fields.items() if any(values)}
    lines = ["\t".join(fields), *map("\t".join, zip(*fields.values()))]
    counts = {"distinct_titles": len(of_title),
              "items_sharing_title": sum(count for count in of_title.values() if count > 1),
              "escaped_ids": sum(1 for one, other in zip(raw, ids) if one != other)}  # fmt: skip
    return ids, inverse.reshape(-1), lines, counts


def _brand(text):
    """A brand on one line, without entities and outer quotes, as titles are cleaned."""
    text = (text or "").replace("&quot;", '"').replace("&amp;", "&")
    return " ".join(text.split()).strip('"')


def _categories(text):
    """A category, or a JSON array of them, as tokens with blanks in between; white space inside a category becomes `_`."""
    if not text:
        return ""
    try:
        values = json.loads(text) if text[0] == "[" else [text]
    except (ValueError, RecursionError):
        values = [text]
    tokens = ["_".join(value.replace('"', "").replace("\0", "").split()) for value in values if isinstance(value, str)]
    return " ".join(filter(None, tokens))


def _price(text):
    """A price as a plain number. Empty for anything else, such as `from 9.99` or left-over markup."""
    match = _PRICE.fullmatch(text or "")
    return match[1].replace(",", "") if match else ""
