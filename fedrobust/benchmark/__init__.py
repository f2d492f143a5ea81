"""A benchmark that others can enter: named suites of attacks, settings and seeds, and a row for each defence.

A suite is a matrix in which every attack is measured on every seed. A row is the file with all cells of one defence.

>>> suite = load_suite("histology-v1")
>>> len(suite.cells(quick=False)), len(suite.cells(quick=True))
(340, 54)
"""

from fedrobust.benchmark.advice import Advice, advised
from fedrobust.benchmark.entry import BenchmarkEntry, read_entry
from fedrobust.benchmark.ranking import Ranked, comparable, ranked
from fedrobust.benchmark.row import BenchmarkRow, read_row, stored_rows
from fedrobust.benchmark.suite import DEFAULT, Suite, load_suite, shipped_suites

__all__ = [
    "DEFAULT",
    "Advice",
    "BenchmarkEntry",
    "BenchmarkRow",
    "Ranked",
    "Suite",
    "advised",
    "comparable",
    "load_suite",
    "ranked",
    "read_entry",
    "read_row",
    "shipped_suites",
    "stored_rows",
]
