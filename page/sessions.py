# Licensed under the Apache License, Version 2.0.
"""What the page remembers of its open windows: in memory, within a ceiling, and no longer than they are open."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from .answers import Answers, Picture


MAX_KEPT_BYTES = 1 * 2**30
MAX_SESSIONS = 500


@dataclass
class Session:
    """The user's own picture, if there is one, and what was last shown."""

    own: Picture | None = None
    findings: Answers | None = None
    words: Answers | None = None

    def num_bytes(self) -> int:
        pictures = [answers.picture for answers in (self.findings, self.words) if answers] + [self.own]
        images = {id(picture.image): picture.image for picture in pictures if picture}
        rows = [row for answers in (self.findings, self.words) if answers for row in answers.rows]
        maps = sum(cell.values.nbytes for row in rows for cell in row.cells.values())
        return maps + sum(image.width * image.height * len(image.getbands()) for image in images.values())


class Sessions:
    """
    Sessions by the key that Gradio gives each window. Above the ceiling, those that were not used for longest are
    forgotten; the page then says so.

    Args:
        max_bytes: of pictures and maps together.
        max_sessions: number of windows.
    """

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES, max_sessions: int = MAX_SESSIONS):
        self.max_bytes, self.max_sessions = max_bytes, max_sessions
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, key: str) -> Session:
        """The session of a window; an empty one, if it is not known."""
        with self._lock:
            if key in self._sessions:
                self._sessions.move_to_end(key)
            return self._sessions.get(key, Session())

    def put(self, key: str, session: Session) -> None:
        """Remember a session, unless its window was closed meanwhile."""
        with self._lock:
            if key in self._closed:
                return
            self._sessions[key] = session
            self._sessions.move_to_end(key)
            total = sum(entry.num_bytes() for entry in self._sessions.values())
            while len(self._sessions) > 1 and (total > self.max_bytes or len(self._sessions) > self.max_sessions):
                total -= self._sessions.popitem(last=False)[1].num_bytes()

    def forget(self, key: str) -> None:
        """A window was closed."""
        with self._lock:
            self._sessions.pop(key, None)
            self._closed[key] = None
            while len(self._closed) > 10 * self.max_sessions:
                self._closed.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._sessions.clear()
