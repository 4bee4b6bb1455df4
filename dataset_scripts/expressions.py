"""Rules 4 to 8 of `dataset_scripts.convert` as Ibis expressions, for engines that hold more than one machine can.

The reviews are a table with the columns `row` (line number in the log), `user`, `item` (number of the item), `time`
(microseconds) and perhaps `rating`. A shuffle loses the order of rows, so every order here is explicit, with `row` as its
last key.
"""

import shutil

import ibis

from dataset_scripts.rules import to_microseconds

_DAY = 86_400_000_000  # microseconds
ORDER = ("time", "first", "row")  # of all samples: rule 8, ties as in rule 7


class Engine:
    """An Ibis backend, and a folder for tables that are computed once.

    Args:
        connection: Ibis backend, such as those of PySpark and DuckDB.
        folder: Path of a folder that all workers of the engine can read and write.
    """

    def __init__(self, connection, folder):
        self.connection, self._folder, self._made = connection, folder, 0

    def read(self, path):
        """The table of a Parquet file."""
        return self.connection.read_parquet(str(path))

    def stored(self, table):
        """The same table, computed now: an engine would compute an expression again for each use. Returns it and its path."""
        self._made += 1
        path = self._folder / f"{self._made}.parquet"
        self.connection.to_parquet(table, str(path))
        return self.read(path), path

    @staticmethod
    def remove(path):
        """Deletes a stored table."""
        if path.is_dir():  # Spark writes a folder
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Tables:
    """All reviews; what `windows.slide` asks.

    Args:
        engine (Engine), table: the reviews.
        end: a datetime, or None.
    """

    def __init__(self, engine, table, end):
        self._engine, self._table = engine, table if end is None else table.filter(table.time <= to_microseconds(end))

    def since(self, begin, _):
        """The :class:`TableRows` from `begin` on."""
        return TableRows(self._engine, self._table if begin is None else self._table.filter(self._table.time >= begin))


class TableRows:
    """Some of the reviews on an engine; the methods are those of `windows.ArrayRows`.

    Attributes:
        table: Ibis table.
    """

    def __init__(self, engine, table, count=None):
        self.table, self._engine, self._count = table, engine, count

    def count(self):
        if self._count is None:
            self._count = int(self.table.count().execute())
        return self._count

    def count_items(self):
        return int(self.table.item.nunique().execute())

    def without_repeats(self):
        table = self.table
        earlier = ibis.row_number().over(group_by=[table.user, table.item], order_by=[table.time, table.row])
        table = table.mutate(earlier=earlier)
        return TableRows(self._engine, self._engine.stored(table.filter(table.earlier == 0).drop("earlier"))[0])

    def core(self, k):
        table, path, rounds, left = self.table, None, [], self.count()
        while left:
            enough = [table.group_by(key).agg(reviews=table.count()) for key in ("user", "item")]
            users, items = (counted.filter(counted.reviews >= k) for counted in enough)
            rest, new_path = self._engine.stored(table.semi_join(users, "user").semi_join(items, "item"))
            n_rest = int(rest.count().execute())
            if path is not None:
                self._engine.remove(path)
            table, path, dropped, left = rest, new_path, left - n_rest, n_rest
            if not dropped:
                break
            rounds.append(dropped)
        return TableRows(self._engine, table, left), rounds


def samples(table, max_history):
    """One row for every review but a user's first (rule 7).

    Adds the columns `first` (smallest `row` of the user), `before` (how many reviews of the user come before), and `back1`,
    `back2`, ... up to `max_history`: the items that come before, null where there is none.
    """
    users = table.group_by("user").agg(first=table.row.min())
    table = table.join(users, "user")
    of_user = {"group_by": table.user, "order_by": [table.time, table.row]}
    back = {f"back{step}": table.item.lag(step).over(**of_user) for step in range(1, max_history + 1)}
    table = table.mutate(before=ibis.row_number().over(**of_user), **back)
    return table.filter(table.before > 0)


def split(table, count, kind, ratios):
    """Divides the samples into train, valid and test (rule 8): three tables.

    Args:
        table: of `samples`.
        count: of its rows.
        kind, ratios: as for `rules.split`.
    """
    if kind == "ratio":
        keys = [_key_at(table, int(share * count), count) for share in (round(ratios[0], 12), round(ratios[0] + ratios[1], 12))]
        ahead = [_before(table, key) for key in keys]
        return table.filter(ahead[0]), table.filter(~ahead[0] & ahead[1]), table.filter(~ahead[1])
    later = ibis.row_number().over(group_by=table.user, order_by=[table.time.desc(), table.row.desc()])
    table = table.mutate(later=later)
    return table.filter(table.later >= 2), table.filter(table.later == 1), table.filter(table.later == 0)


def _before(table, key):
    """Whether a sample comes before a key, in the order `ORDER`; None: all do."""
    if key is None:
        return ibis.literal(True)
    time, first, row = key
    of_user = (table.first < first) | ((table.first == first) & (table.row < row))
    return (table.time < time) | ((table.time == time) & of_user)


def _key_at(table, place, count):
    """The key of the sample at a place in the order of all samples; None behind the last.

    No sample is sorted: the samples of each day are counted, then those of each moment of one day, and so on.
    """
    if place >= count:
        return None
    for value in (lambda rows: rows.time // _DAY, *(lambda rows, name=name: rows[name] for name in ORDER)):
        counted = table.group_by(key=value(table)).agg(samples=table.count())
        counted = counted.order_by("key").execute()
        ends = counted["samples"].cumsum()
        chosen = int((ends <= place).sum())
        place -= int(ends.iloc[chosen - 1]) if chosen else 0
        table = table.filter(value(table) == int(counted["key"].iloc[chosen]))
    found = table.execute().iloc[0]
    return tuple(int(found[name]) for name in ORDER)
