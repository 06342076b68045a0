"""Questions about scenes as data: what is asked, and its wording. ``answers`` computes, ``drawing`` draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rebus.data.scenes.graph import Description

# The kinds scores are reported by, after CLEVR (arXiv 1612.06890), which tells comparing numbers (``comparison``) from
# comparing attributes; ``difference`` is asked about two images, the others about one.
KINDS = (
    "existence",
    "count",
    "color",
    "shape",
    "size",
    "material",
    "comparison",
    "attribute-comparison",
    "relation",
    "location",
    "difference",
)


@dataclass(frozen=True)
class Question:
    """One question.

    ``kind`` is what scores are reported by; ``form`` is the wording and the rule of the answer; ``subjects`` are the
    descriptions it names, in the order of the wording; ``word`` is the attribute or the relation it is about.
    """

    kind: str
    form: str
    subjects: tuple[Description, ...] = ()
    word: str = ""

    @property
    def text(self) -> str:
        """The wording."""
        return _WORDINGS[self.form](self)


def with_article(noun: str) -> str:
    """``a cube``, ``an orange cube``."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


_WORDINGS: Mapping[str, Callable[[Question], str]] = {
    "exists": lambda q: f"is there {with_article(q.subjects[0].text)}?",
    "count": lambda q: f"how many {q.subjects[0].plural} are there?",
    "attribute": lambda q: f"what {q.word} is the {q.subjects[0].text}?",
    "larger": lambda q: f"is the {q.subjects[0].text} larger than the {q.subjects[1].text}?",
    "more": lambda q: f"are there more {q.subjects[0].plural} than {q.subjects[1].plural}?",
    "same": lambda q: f"do the {q.subjects[0].text} and the {q.subjects[1].text} have the same {q.word}?",
    "relation": lambda q: f"is the {q.subjects[0].text} {q.word} the {q.subjects[1].text}?",
    "where": lambda q: f"where is the {q.subjects[0].text}?",
    "changed": lambda q: "what changed from the first image to the second?",
    "which-more": lambda q: "which image has more objects?",
    "which-has": lambda q: f"which image has {with_article(q.subjects[0].text)}?",
}
FORMS = tuple(_WORDINGS)
