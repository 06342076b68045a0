"""Pages for people: scores beside what they must be read against, and what the model answered."""

from rebus.evaluation.report.charts import score_bars
from rebus.evaluation.report.page import Example, environment, examples, render_evaluation

__all__ = ["Example", "environment", "examples", "render_evaluation", "score_bars"]
