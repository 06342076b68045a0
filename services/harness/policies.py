"""What each kind of method may take: which places its calls fill, and how long they may last. The one table of both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Pool = Literal["calls", "watches", "uploads"]


@dataclass(frozen=True)
class Policy:
    """How the calls of a method are run."""

    pool: Pool
    # Deadline of a call whose client sets none.
    default_seconds: float
    # Longest deadline that a client may ask for; beyond it, the server ends the call.
    max_seconds: float


_READ = Policy("calls", 15, 300)
_CHANGE = Policy("calls", 60, 600)
_MODEL = Policy("calls", 120, 3600)
# A watch of a job of days is reconnected with ``after_event``; a bound frees the place of a client that vanished.
_WATCH = Policy("watches", 24 * 3600, 24 * 3600)
_UPLOAD = Policy("uploads", 900, 3600)

# By the verb that a method's name begins with.
POLICIES: dict[str, Policy] = {
    "Get": _READ,
    "List": _READ,
    "Create": _CHANGE,
    "Delete": _CHANGE,
    "Cancel": _CHANGE,
    "Resume": _CHANGE,
    "Set": _CHANGE,
    "Embed": _MODEL,
    "Search": _MODEL,
    "Generate": _MODEL,
    "Watch": _WATCH,
    "Upload": _UPLOAD,
}
_VERB = re.compile(r"[A-Z][a-z]*")


def policy_of(method: str) -> Policy:
    """The policy of ``/package.Service/Method``; that of a change for a verb that the table does not hold."""
    verb = _VERB.match(method.rpartition("/")[2])
    return POLICIES.get(verb[0], _CHANGE) if verb else _CHANGE
