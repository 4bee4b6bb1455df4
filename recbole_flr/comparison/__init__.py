"""Comparisons: several models and seeds with one command, statistics over their results, tables and a report.

`plan` says which runs there are, `runs` makes them or finds them, `results` reads them, `slices`, `statistics` and `summary` compute
the figures, and `table`, `plots` and `report` show them. Nothing here is imported by an ordinary run.
"""
