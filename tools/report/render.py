"""From ``ReportData`` to one HTML file that asks nothing of any network."""

from __future__ import annotations

from jinja2 import ChoiceLoader, PackageLoader

from rebus.evaluation.report import environment
from tools.report.curves import line_chart
from tools.report.data import ReportData
from tools.report.lineage import lineage_graph


def render(data: ReportData) -> str:
    """The page; every text is escaped and every image inlined."""
    env = environment()
    env.loader = ChoiceLoader([PackageLoader("tools.report", "."), *([env.loader] if env.loader else [])])
    env.globals.update(line_chart=line_chart, lineage_graph=lineage_graph)
    return env.get_template("report.html.j2").render(report=data)
