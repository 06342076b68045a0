"""Metrics: pure functions from answers and references to one number an item.

Every metric has the form ``metric(config, ...) -> [N] float64``, so a mean, an interval and a paired comparison can all
be made from what it returns. To add one, see this package's README.
"""

from rebus.evaluation.metrics.captions import CiderDConfig, cider_d
from rebus.evaluation.metrics.exact import exact_match, normalise
from rebus.evaluation.metrics.ranking import RecallConfig, recall_at_k, reciprocal_rank, relevant_ranks
from rebus.evaluation.metrics.yes_no import (
    YesNoReport,
    mme_accuracy,
    mme_accuracy_plus,
    parse_mme,
    parse_pope,
    pope_accuracy,
    pope_report,
)

__all__ = [
    "CiderDConfig",
    "RecallConfig",
    "YesNoReport",
    "cider_d",
    "exact_match",
    "mme_accuracy",
    "mme_accuracy_plus",
    "normalise",
    "parse_mme",
    "parse_pope",
    "pope_accuracy",
    "pope_report",
    "recall_at_k",
    "reciprocal_rank",
    "relevant_ranks",
]
