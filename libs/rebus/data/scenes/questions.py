"""Questions about scenes as data: what is asked, and its wording. Answers are computed in ``answers``.

Every kind is drawn so that the wording alone tells as little as possible: where the answer is yes or no, or a number,
the answer is drawn first and a question that has it is looked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rebus.data.scenes.answers import answer
from rebus.data.scenes.graph import ATTRIBUTES, RELATIONS, Description, Scene, SceneObject, describe

_TRIES = 40


@dataclass(frozen=True)
class Question:
    """One question.

    ``kind`` is what scores are reported by; ``form`` is the wording and the rule of the answer; ``subjects`` are the
    descriptions it names; ``word`` is the attribute or the relation asked about.
    """

    kind: str
    form: str
    subjects: tuple[Description, ...] = ()
    word: str = ""

    @property
    def text(self) -> str:
        """The wording."""
        return _WORDINGS[self.form](self)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
