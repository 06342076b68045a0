"""How the store talks to S3: time limits, retries, part sizes; each may be set in the environment."""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rebus.errors import invalid

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

PREFIX = "REBUS_STORE_"


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Bounds of one request and of all attempts at it.

    ``from_environment`` reads ``REBUS_STORE_<FIELD>``, e.g. ``REBUS_STORE_REQUEST_TIMEOUT_S=10``.
    """

    # One attempt, from connecting to the last byte of the answer.
    request_timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    # Attempts after the first one; 0 tries once.
    max_retries: int = 10
    # No new attempt begins later than this after the first one began.
    retry_timeout_s: float = 60.0
    # The wait before attempt n is drawn uniformly from 0 to min(max_backoff_s, init_backoff_s * 2**n).
    init_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    # A file larger than this goes up in parts of this size, and comes down in ranges of it. S3 wants at least 5 MiB
    # and at most 10,000 parts.
    part_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = {"max_retries": 0, "part_bytes": 5 << 20}.get(field.name)
            value = getattr(self, field.name)
            if value < least if least is not None else not 0 < value < float("inf"):
                expected = "more than 0" if least is None else f"at least {least}"
                raise invalid(f"{PREFIX}{field.name.upper()}", f"expected {expected}, found {value}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> StoreSettings:
        """The defaults, with what the environment sets; ``InvalidArgumentError`` names a variable that is no number."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            variable = f"{PREFIX}{field.name.upper()}"
            text = environment.get(variable)
            if text is None:
                continue
            number = int if isinstance(field.default, int) else float
            try:
                values[field.name] = number(text)
            except ValueError:
                raise invalid(variable, f"expected a number, found {text!r}") from None
        return cls(**values)

    def attempts(self, rng: random.Random | None = None) -> Iterator[int]:
        """Numbers the attempts from 0 and waits before each but the first, until the budget is spent."""
        rng, start = rng or random.Random(), time.monotonic()
        for number in range(self.max_retries + 1):
            if number:
                wait = rng.uniform(0, min(self.max_backoff_s, self.init_backoff_s * 2.0**number))
                if time.monotonic() + wait - start > self.retry_timeout_s:
                    return
                time.sleep(wait)
            yield number

    def single_attempt(self) -> StoreSettings:
        """The same without retries."""
        return dataclasses.replace(self, max_retries=0)

    def client_options(self) -> ClientConfig:
        """The time limits as obstore takes them."""
        return {
            "timeout": timedelta(seconds=self.request_timeout_s),
            "connect_timeout": timedelta(seconds=self.connect_timeout_s),
        }

    def retry_config(self) -> RetryConfig:
        """The retries as obstore takes them; it, too, draws its waits at random."""
        return {
            "max_retries": self.max_retries,
            "retry_timeout": timedelta(seconds=self.retry_timeout_s),
            "backoff": {
                "init_backoff": timedelta(seconds=self.init_backoff_s),
                "max_backoff": timedelta(seconds=self.max_backoff_s),
                "base": 2,
            },
        }
