"""How a virtainer ends: with a reason, a sentence for people, and the exit code of the reason."""

from __future__ import annotations

from virtainer.protocol import Reason

__all__ = ["End", "Reason"]


class End(Exception):
    """The virtainer ends now.

    Args:
        reason: why.
        sentence: the cause for people.
        crashed: whether QEMU itself failed.
    """

    def __init__(self, reason: Reason, sentence: str, *, crashed: bool = False) -> None:
        super().__init__(" ".join(sentence.split()))
        self.reason, self.crashed = reason, crashed
