"""Walks the pages of a List call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

PAGE_SIZE = 1000


def items(call: Callable[[Any], Any], request: Any, field: str, limit: int) -> list[Any]:
    """The first ``limit`` items of a listing; ``field`` names the response's items."""
    request.page_size = min(limit, PAGE_SIZE)
    return list(itertools.islice(_pages(call, request, field), limit))


def matching(
    call: Callable[[Any], Any], request: Any, field: str, limit: int, keep: Callable[[Any], bool]
) -> list[Any]:
    """The first ``limit`` items that ``keep`` accepts."""
    request.page_size = PAGE_SIZE
    return list(itertools.islice(filter(keep, _pages(call, request, field)), limit))


def _pages(call: Callable[[Any], Any], request: Any, field: str) -> Iterator[Any]:
    while True:
        response = call(request)
        yield from getattr(response, field)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token
