"""RecBole's dataset classes, on files that are read verbatim, and with histories as integers from the start.

RecBole reads atomic files with pandas' quoting, words for missing values and line ends: an item whose brand begins with a
quote swallows the rows behind it, a user called "NA" is dropped, and a title with a lone CR becomes two items. Here
RecBole gets the same reader as the catalogue.

RecBole also makes an array of strings of every history of split files, and a tensor of each: a million rows take 1.7 GB. Here
such a column is read as integers (`table.Lists`). RecBole's DataFrame has a stand-in for it, a `range` as long as the history.
That is enough for all that RecBole does between reading and tensors: the rows of split files are neither filtered nor sorted.
"""

import sys
import types
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from pandas._libs.parsers import STR_NA_VALUES
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.dataset import dataset as recbole_module
from recbole.data.interaction import Interaction
from recbole.utils.enum_type import FeatureSource, FeatureType

from recbole_flr.data.atomic import header, read_columns
from recbole_flr.data.table import Lists, Unusual, read_table


@contextmanager
def verbatim_reader():
    """While this is open, RecBole reads atomic files verbatim; text is missing only if empty. Its plain and its sequential
    datasets are those of this module."""
    classes = vars(sys.modules["recbole.data.dataset"])  # where RecBole looks for them
    classes.update(Dataset=LeanDataset, SequentialDataset=LeanSequentialDataset)
    try:
        with reader(read_frame):
            yield
    finally:
        classes.update(Dataset=Dataset, SequentialDataset=SequentialDataset)


@contextmanager
def reader(read_csv):
    """While this is open, `read_csv` reads for RecBole's dataset module instead of pandas' function."""
    before, pandas = recbole_module.pd, types.ModuleType("pandas")
    pandas.__dict__.update(vars(pd), read_csv=read_csv)
    recbole_module.pd = pandas
    try:
        yield
    finally:
        recbole_module.pd = before


def read_frame(path, delimiter, usecols, dtype, encoding, **_):
    """What RecBole asks pandas' read_csv for: `usecols` are fields `name:type`, `dtype` says which of them are texts."""
    wanted = {field.split(":")[0]: str if dtype[field] is str else float for field in usecols}
    table, _ = read_any(path, wanted, delimiter, encoding)
    return table.set_axis(usecols, axis=1)


def read_any(path, wanted, separator, encoding, list_separator=" "):
    """What `table.read_table` returns, of any file.

    Raises:
        DataError: as `atomic.read_columns`.
        ValueError: a number cannot be read.
    """
    try:
        return read_table(path, list(header(path, separator, encoding)), wanted, separator, encoding, list_separator)
    except Unusual:
        return read_slowly(path, wanted, separator, encoding, list_separator)


def read_slowly(path, wanted, separator, encoding, list_separator=" "):
    """The same as :func:`read_any`, without DuckDB."""
    columns = read_columns(path, wanted, separator, encoding)
    lists = {name: Lists.of(columns.pop(name), list_separator) for name, kind in wanted.items() if kind is list}
    table = pd.DataFrame(columns, dtype=object)
    for name in table:
        missing = table[name].isin(STR_NA_VALUES if wanted[name] is float else [""])
        table[name] = table[name].mask(missing).astype(np.float64 if wanted[name] is float else object)
    return table, lists


class _LeanHistories:
    """Overrides of RecBole's Dataset: columns of token lists in split files are integers, outside of RecBole's DataFrame.

    Attributes:
        _lists: name of the column -> list of `Lists`, one for each split file.
        _distinct: name of the column -> DataFrame of the distinct tokens of each file, in which RecBole puts their ids.
        _hidden: set of the columns that RecBole does not see while it reads a file.
    """

    def _get_preset(self):
        super()._get_preset()
        self._lists, self._distinct, self._hidden = {}, {}, set()

    def _get_load_and_unload_col(self, source):
        load, unload = super()._get_load_and_unload_col(source)
        if not self._hidden:
            return load, unload
        return (None, (unload or set()) | self._hidden) if load is None else (load - self._hidden, None)

    def _load_feat(self, filepath, source):
        wanted = self._columns_with_lists(filepath, source)
        if wanted is None:
            return super()._load_feat(filepath, source)
        config = self.config
        table, lists = read_any(filepath, wanted, config["field_separator"], config["encoding"], config["seq_separator"])
        if not len(table):
            return super()._load_feat(filepath, source)  # which refuses it
        self._hidden = set(lists)
        try:
            with reader(lambda *_, usecols, **__: table.set_axis(usecols, axis=1)):
                feat = super()._load_feat(filepath, source)
        finally:
            self._hidden = set()
        for field, column in lists.items():
            self._lists.setdefault(field, []).append(column)
            longest = int(column.lengths.max())
            self.field2source[field], self.field2type[field] = source, FeatureType.TOKEN_SEQ
            self.field2seqlen[field] = longest
            stand_ins = np.empty(longest + 1, dtype=object)
            stand_ins[:] = [range(length) for length in range(longest + 1)]
            feat[field] = stand_ins[column.lengths]
        return feat[list(wanted)]

    def _load_inter_feat(self, token, dataset_path):
        super()._load_inter_feat(token, dataset_path)
        for field, lists in self._lists.items():
            if len(lists) < len(self.file_size_list):
                raise ValueError(f"the column {field!r} is a token_seq in some split files only; expected it in all")

    def _columns_with_lists(self, path, source):
        """Columns to load of a split file, name -> kind, in the order of the file. None if RecBole should read the file."""
        if source != FeatureSource.INTERACTION or self.benchmark_filename_list is None:
            return None
        load, unload = self._get_load_and_unload_col(source)
        kinds = {"token": str, "float": float, "float_seq": str, "token_seq": list}
        types = header(path, self.config["field_separator"], self.config["encoding"] or "utf-8")
        if not set(types.values()) <= set(kinds):
            return None
        wanted = {name: kinds[kind] for name, kind in types.items()
                  if (load is None or name in load) and name not in (unload or ())}
        for name in self.config["seq_len"] or ():  # RecBole cuts these
            if name in wanted and wanted[name] is list:
                wanted[name] = str
        return wanted if list in wanted.values() and len(set(wanted.values())) > 1 else None

    def _get_remap_list(self, field_list):
        """RecBole gets the distinct tokens of a list, in the order in which they first occur, as if they were a column."""
        found = []
        for feat, field, kind in super()._get_remap_list(field_list):
            if feat is self.inter_feat and field in self._lists:
                tokens = [column.texts[code] for column in self._lists[field] for code in column.distinct().tolist()]
                self._distinct[field] = feat = pd.DataFrame({field: np.array([*tokens, None], dtype=object)[:-1]})
                kind = FeatureType.TOKEN
            found.append((feat, field, kind))
        return found

    def _dataframe_to_interaction(self, data):
        fields = [field for field in data if field in self._lists] if data is self.inter_feat else []
        found = super()._dataframe_to_interaction(data.drop(columns=fields))
        tensors = {field: self._padded(field) if field in fields else found[field] for field in data}
        return Interaction(tensors) if fields else found

    def _padded(self, field):
        """The ids of a column of lists: int64 [rows of all files, longest list]."""
        lists, numbers = self._lists.pop(field), self._distinct.pop(field)[field].to_numpy()
        rows = np.zeros((sum(len(column.lengths) for column in lists), self.field2seqlen[field]), dtype=np.int64)
        first = last = 0
        for column in lists:
            distinct = column.distinct()
            of_text = np.zeros(len(column.texts), dtype=np.int64)
            of_text[distinct] = numbers[last:last + len(distinct)]
            column.fill(of_text, rows[first:first + len(column.lengths)])
            first, last = first + len(column.lengths), last + len(distinct)
        return torch.from_numpy(rows)


class LeanDataset(_LeanHistories, Dataset):
    """RecBole's Dataset."""


class LeanSequentialDataset(_LeanHistories, SequentialDataset):
    """RecBole's SequentialDataset."""
