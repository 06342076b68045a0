"""The language of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import pyarrow as pa
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from rebus.data.columns import joined_texts
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.registry import register

LANGUAGE = "language"


@dataclass(frozen=True, kw_only=True)
class LanguageIdConfig:
    """Which languages stay, as ISO 639-1 codes; all if empty. Shorter texts are not judged."""

    keep: tuple[str, ...] = ()
    min_chars: int = 20


@register("curator", "language-id", config=LanguageIdConfig)
class LanguageId(Curator):
    """Adds ``language``, the code of the text's language (null: too short), and may keep some languages only."""

    reads = ("segments",)
    adds: Mapping[str, pa.DataType] = {LANGUAGE: pa.string()}

    def __init__(self, config: LanguageIdConfig) -> None:
        self._config = config

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Naive Bayes over byte n-grams, by a model that comes with its package."""
        languages = [self._language(text) for text in joined_texts(observed).to_pylist()]
        return Judgement([self._judge(language) for language in languages], {LANGUAGE: languages})

    def _language(self, text: str) -> str | None:
        return _identifier().classify(text)[0] if len(text) >= self._config.min_chars else None

    def _judge(self, language: str | None) -> str:
        if language is None or not self._config.keep or language in self._config.keep:
            return KEEP
        return f"is in language {language!r}, not one of {', '.join(self._config.keep)}"


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE)
