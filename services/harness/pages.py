"""Pages of listings that are counted, not named: the token is the position of the next item."""

from __future__ import annotations

import re

from rebus.errors import invalid


def page_bounds(total: int, size: int, page_token: str) -> tuple[int, str]:
    """Where the page starts and the token of the next one (empty on the last)."""
    if page_token and not (re.fullmatch(r"[0-9]+", page_token) and int(page_token) <= total):
        raise invalid("page_token", "not a token of this listing; start again without one")
    start = int(page_token or 0)
    return start, str(start + size) if start + size < total else ""
