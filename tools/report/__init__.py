"""One self-contained HTML page about what was made: samples, losses, neighbours, answers, scores, lineage."""

from tools.report.collect import collect
from tools.report.data import ReportData
from tools.report.render import render

__all__ = ["ReportData", "collect", "render"]
