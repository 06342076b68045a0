"""Which split a family belongs to: decided by a hash of its name, so that it never straddles two."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SplitShares:
    """Shares of the families held out. The same seed gives a family the same split whatever else is ingested."""

    validation: float = 0.05
    test: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ValueError(f"validation={self.validation} and test={self.test} must be >= 0 and sum to less than 1")

    def split_of(self, family: str) -> str:
        """``train``, ``validation`` or ``test``."""
        point = family_point(family, self.seed)
        if point < self.test:
            return "test"
        return "validation" if point < self.test + self.validation else "train"


def family_point(family: str, seed: int) -> float:
    """A point in [0, 1) that depends on the family's name and the seed alone, uniform over names."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{family}".encode()).digest()[:8]) / 2**64
