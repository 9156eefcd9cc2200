"""From results to something a person can read: rows, numbers, figures, one self-contained page."""

from nestling.report.page import write_report
from nestling.report.results import Measurement, Results, ResultsWriter, read_results
from nestling.report.summary import Comparison, compare

__all__ = [
    "Comparison",
    "Measurement",
    "Results",
    "ResultsWriter",
    "compare",
    "read_results",
    "write_report",
]
