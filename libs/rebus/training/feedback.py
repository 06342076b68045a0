"""What the steps of a stage were worth to its mixer, handed from the training thread to the one that draws."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from rebus.data.stream import FEEDBACK_LAG
from rebus.errors import CancelledError


class Feedback:
    """Rewards by step of the stage; ``recent`` holds those of the last steps before ``next_step``, where there are any.

    A step that told none had none.
    """

    def __init__(self, recent: Mapping[int, dict[str, float]], next_step: int) -> None:
        self.recent = dict(recent)
        self._next = next_step
        self._closed = False
        self._changed = threading.Condition()

    def tell(self, rewards: Mapping[str, float]) -> None:
        """The rewards of the next step; those that no draw can ask for any more are forgotten."""
        with self._changed:
            if rewards:
                self.recent[self._next] = dict(rewards)
            self._next += 1
            self.recent = {step: told for step, told in self.recent.items() if step >= self._next - FEEDBACK_LAG}
            self._changed.notify_all()

    def of(self, step: int) -> Mapping[str, float]:
        """The rewards of a step, once it has been trained on."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or step < self._next)
            if self._closed:
                raise CancelledError("the stage ended before its next step was drawn")
            return self.recent.get(step, {})

    def close(self) -> None:
        """Wakes who waits for steps that will not come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
