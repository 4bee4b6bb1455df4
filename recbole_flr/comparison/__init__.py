"""Comparisons: several models and seeds with one command, statistics over their results, tables and a report.

`plan` says which runs there are, `runs` makes them or finds them, and `results` reads them. `slices`, `statistics` and `summary`
compute the figures. `table`, `formats`, `plots` and `report` show them. An ordinary run imports nothing of this.
"""
