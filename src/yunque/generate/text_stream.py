"""From token bytes to text that may be shown: whole characters only, and nothing of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes the bytes of one token after another and gives the text that is certain by then.

    Half a character waits for its other half; text that may be the beginning of a stop string waits until it is
    known whether it is one. After `stopped` is True no more text comes.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """The text that `data` makes certain."""
        return self._pass_on(self._decoder.decode(data))

    def finish(self) -> str:
        """What was still held back: no stop string can be completed any more."""
        text = self._pass_on(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _pass_on(self, fresh: str) -> str:
        if self.stopped:
            return ""
        text, self._held = self._held + fresh, ""
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        waiting = max((_overlap(text, stop) for stop in self._stop), default=0)
        if waiting:
            text, self._held = text[:-waiting], text[-waiting:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How many letters at the end of `text` are the beginning of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
