"""Reports as HTML pages that need no other file: of one run, and comparisons of several. Made from journals alone.

Runs are ranked only if all options of their task agree. Which options are the task's, and which the candidate's:

>>> from fedrobust.report.distinctions import sides
>>> sides({"federation.rounds": "20", "aggregation.rule": "median", "trust.acts": "true"})
({'federation.rounds': '20'}, {'aggregation.rule': 'median', 'trust.acts': 'true'})
"""

from fedrobust.report.compare import Comparison, Setting, compare
from fedrobust.report.comparison_files import write_comparison
from fedrobust.report.files import OFFICER, make_figures, save_partition, write_again, write_report
from fedrobust.report.page import CHAPTERS, verdict
from fedrobust.report.story import Hospital, hospitals

__all__ = [
    "CHAPTERS",
    "OFFICER",
    "Comparison",
    "Hospital",
    "Setting",
    "compare",
    "hospitals",
    "make_figures",
    "save_partition",
    "verdict",
    "write_again",
    "write_comparison",
    "write_report",
]
