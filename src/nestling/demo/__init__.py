"""The demo: real texts, learned one domain after the other, by Hope and by a Transformer++."""

from nestling.demo.budget import DEFAULT, SHORT, DemoBudget
from nestling.demo.console import main, show
from nestling.demo.runner import REPORT, RESULTS, run_demo
from nestling.demo.texts import read_texts, shipped

__all__ = [
    "DEFAULT",
    "REPORT",
    "RESULTS",
    "SHORT",
    "DemoBudget",
    "main",
    "read_texts",
    "run_demo",
    "shipped",
    "show",
]
