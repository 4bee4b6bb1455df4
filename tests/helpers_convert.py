"""Small logs on disk, and what a conversion must be like whatever it read, for the tests of the dataset scripts."""

import gzip
import hashlib
import json
from pathlib import Path

import zstandard

ROOT = Path(__file__).resolve().parents[1]
DAY = 86400
START = 1506816000  # 2017-10-01 UTC
PARTS = ("train.inter", "valid.inter", "test.inter")
KINDS = (*PARTS, "inter", "item")
FILES = (*KINDS, "yaml", "report.json")
DROPPED = "malformed bad_ids bad_times without_title low_rating outside_window repeated below_k".split()
COLUMNS = {"user": "customer", "item": "sku", "time": "bought", "title": "product"}  # of the logs that are not Amazon's


def pack(data, name):
    """Bytes as a file of that name holds them: gzip for .gz, zstd for .zst."""
    if name.endswith(".gz"):
        return gzip.compress(data, 1)
    return zstandard.compress(data, 1) if name.endswith(".zst") else data


def unpack(path):
    data = Path(path).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def lines(path):
    return unpack(path).decode().removesuffix("\n").split("\n")


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path, rows):
    """Rows (dicts) as JSON lines, or bytes as they are; compressed as the name says. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(rows if isinstance(rows, bytes) else json_lines(rows), path.name))
    return path


def reviews_of(n_users=6, n_items=6):
    """Every user reviews every item, one a day."""
    return [
        {"reviewerID": f"R{user}", "asin": f"B{item}", "overall": 5.0, "unixReviewTime": START + DAY * item}
        for user in range(n_users)
        for item in range(n_items)
    ]


def meta_of(n_items=6):
    return [{"asin": f"B{item}", "title": f"Toy {item}"} for item in range(n_items)]


def simple(folder, n_users=6, n_items=6, suffix=""):
    """Files of Amazon's of which nothing is dropped for k <= 6; 30 samples come out. Returns their paths."""
    files = (
        write(folder / f"reviews.json{suffix}", reviews_of(n_users, n_items)),
        write(folder / f"meta.json{suffix}", meta_of(n_items)),
    )
    return files


def shop(n_users=6, n_items=6):
    """The same as rows of a log that is not Amazon's: customer, sku, bought, product."""
    return [
        {"customer": f"R{user}", "sku": f"B{item}", "bought": START + DAY * item, "product": f"Toy {item}"}
        for user in range(n_users)
        for item in range(n_items)
    ]


def tree(folder):
    """path -> content of everything below a folder; None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def output(folder, name="s"):
    """kind -> lines of a converted set."""
    return {kind: lines(folder / name / f"{name}.{kind}") for kind in KINDS}


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_set(report, out, name="s"):
    """What holds of every set that is written: all files and nothing else, and counts that agree with them."""
    folder = out / name
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.{kind}" for kind in FILES)
    assert [path.name for path in out.iterdir()] == [name]
    assert json.loads((folder / f"{name}.report.json").read_bytes()) == {**report, "folder": name}
    assert report["lines"] == report["kept"] + sum(report[key] for key in DROPPED)
    assert report["outputs"] == {f"{name}.{kind}": sha256(folder / f"{name}.{kind}") for kind in FILES[:-1]}
    found = {kind: [line.split("\t") for line in of_kind[1:]] for kind, of_kind in output(out, name).items()}
    heads = {kind: lines(folder / f"{name}.{kind}")[0].split("\t") for kind in KINDS}
    assert all(len(row) == len(heads[kind]) for kind, rows in found.items() for row in rows)
    items, users = [row[0] for row in found["item"]], {row[0] for row in found["inter"]}
    assert len(set(items)) == len(items) == report["items"] and set(items) == {row[1] for row in found["inter"]}
    assert (len(users), len(found["inter"])) == (report["users"], report["kept"])
    assert sum(report[part] for part in ("train", "valid", "test")) == report["kept"] - report["users"]
    for part in PARTS:
        assert len(found[part]) == report[part.removesuffix(".inter")]
        for user, history, target, _ in found[part]:
            assert user in users and {*history.split(" "), target} <= set(items)
    times = [float(row[-1]) for part in PARTS for row in found[part]]
    assert report["options"]["split"] != "ratio" or times == sorted(times)
    assert 0 <= len(report["malformed_lines"]) == min(report["malformed"], 5)
    assert report["malformed_lines"] == sorted(set(report["malformed_lines"]))
    assert report["windows"][-1] == [report["start"], report["items"]]
    assert sum(report["k_core_rounds"]) == report["below_k"]
    assert report["density"] == report["kept"] / (report["users"] * report["items"])
