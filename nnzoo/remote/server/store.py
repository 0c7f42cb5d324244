"""The durable queue: SQLite says what jobs there are and how they stand, files hold their requests and answers.

What was committed survives the death of the process at any moment (WAL); files are written before the row that says so.
"""

import fcntl
import os
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
ENDED = (DONE, FAILED, CANCELLED)
ROW_SECONDS = 7 * 86400.0  # how long one can still be told what became of a job whose answer is gone
MOST_ROWS = 1_000_000  # of such jobs, the last

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    idempotency TEXT,
    digest TEXT NOT NULL,
    model TEXT NOT NULL,
    status TEXT NOT NULL,
    size INTEGER NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    answer_size INTEGER,
    UNIQUE (owner, idempotency)
);
CREATE INDEX IF NOT EXISTS unfinished ON jobs (status) WHERE finished IS NULL;
CREATE INDEX IF NOT EXISTS answered ON jobs (finished) WHERE answer_size IS NOT NULL;
CREATE INDEX IF NOT EXISTS answered_to ON jobs (owner, finished) WHERE answer_size IS NOT NULL;
"""
_ANSWERED = "SELECT * FROM jobs WHERE answer_size IS NOT NULL"


@dataclass
class Row:
    """A job as it is on disk. `answer_size` is None where there is no answer: not yet, or no longer."""

    number: int
    id: str
    owner: str
    idempotency: str | None
    digest: str
    model: str
    status: str
    size: int
    created: float
    started: float | None
    finished: float | None
    attempts: int
    answer_size: int | None


class Store:
    """The jobs in a folder, which one server at a time may use; OSError where another does, or others may write.

    >>> import tempfile
    >>> store = Store(Path(tempfile.mkdtemp()))
    >>> file = store.upload()
    >>> _ = file.write_bytes(b"request")
    >>> row = store.add(file, owner="me", idempotency=None, digest="", model="m", size=7)
    >>> store.request(row.id).read_bytes(), store.find(row.id).status
    (b'request', 'queued')
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        for part in ("", "uploads", "requests", "answers"):
            (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_ours(folder / part)
        self._lock = _locked(folder)
        self._database = sqlite3.connect(folder / "jobs.sqlite", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")  # what is committed outlives the process, not a power cut
        self._database.executescript(_SCHEMA)
        self._kept: Counter[str] = Counter()  # bytes of answers, by their owners
        for row in self._all(_ANSWERED):
            self._kept[row.owner] += row.answer_size or 0

    @property
    def kept_bytes(self) -> int:
        """Of all answers together."""
        return self._kept.total()

    def close(self) -> None:
        self._database.close()
        os.close(self._lock)

    # --- files -------------------------------------------------------------------------------------------------------

    def upload(self) -> Path:
        """A new file's path, for a request that is coming in, or an answer."""
        return self._folder / "uploads" / secrets.token_hex(8)

    def request(self, id: str) -> Path:
        return self._folder / "requests" / id

    def answer(self, id: str) -> Path:
        return self._folder / "answers" / id

    # --- jobs --------------------------------------------------------------------------------------------------------

    def add(self, upload: Path, *, owner: str, idempotency: str | None, digest: str, model: str, size: int) -> Row:
        """Queue the request that was uploaded to a file."""
        id = secrets.token_urlsafe(18)
        upload.rename(self.request(id))
        self._database.execute(
            "INSERT INTO jobs (id, owner, idempotency, digest, model, status, size, created) VALUES (?,?,?,?,?,?,?,?)",
            (id, owner, idempotency, digest, model, QUEUED, size, self._clock()),
        )
        row = self.find(id)
        assert row is not None
        return row

    def find(self, id: str) -> Row | None:
        return self._one("SELECT * FROM jobs WHERE id = ?", id)

    def sent_before(self, owner: str, idempotency: str) -> Row | None:
        """The job that an owner sent under an idempotency key."""
        return self._one("SELECT * FROM jobs WHERE owner = ? AND idempotency = ?", owner, idempotency)

    def started(self, id: str) -> None:
        """Note that a job runs, once more."""
        self._database.execute(
            "UPDATE jobs SET status = ?, started = ?, attempts = attempts + 1 WHERE id = ? AND finished IS NULL",
            (RUNNING, self._clock(), id),
        )

    def queued_again(self, id: str, attempts: int) -> None:
        """Note that a job waits once more, and how often it was begun."""
        self._database.execute(
            "UPDATE jobs SET status = ?, attempts = ? WHERE id = ? AND finished IS NULL", (QUEUED, attempts, id)
        )

    def finished(self, id: str, status: str, answer: Path) -> bool:
        """End a job with the answer in a file; False, and nothing done, where it had ended already."""
        row = self.find(id)
        if row is None or row.finished is not None:
            answer.unlink()
            return False
        size = answer.stat().st_size
        answer.rename(self.answer(id))
        self._database.execute(
            "UPDATE jobs SET status = ?, finished = ?, answer_size = ? WHERE id = ?", (status, self._clock(), size, id)
        )
        self._kept[row.owner] += size
        self.request(id).unlink(missing_ok=True)
        return True

    def forget(self, row: Row) -> None:
        """Drop an answer; the row stays for a while and says that there was one."""
        self._database.execute("UPDATE jobs SET answer_size = NULL WHERE id = ?", (row.id,))
        self._kept[row.owner] -= row.answer_size or 0
        if not self._kept[row.owner]:
            del self._kept[row.owner]
        self.answer(row.id).unlink(missing_ok=True)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def recover(self) -> list[Row]:
        """After a start: the jobs without an answer, oldest first, all queued; files of none are removed."""
        self._database.execute("UPDATE jobs SET status = ? WHERE status = ?", (QUEUED, RUNNING))
        waiting = self._all("SELECT * FROM jobs WHERE finished IS NULL ORDER BY number")
        kept = {row.id for row in self._all(_ANSWERED)}
        for folder, ids in (("uploads", set()), ("requests", {row.id for row in waiting}), ("answers", kept)):
            for file in (self._folder / folder).iterdir():
                if file.name not in ids:
                    file.unlink()
        return waiting

    def sweep(self, seconds: float, most_bytes: int) -> None:
        """Drop answers older than so many seconds; and while all have more than so many bytes, who has most loses one.

        Of whom that is, the oldest goes: nobody's answers are driven out by those of others.
        """
        now = self._clock()
        while old := self._all(f"{_ANSWERED} AND finished < ? ORDER BY finished LIMIT 100", now - seconds):
            for row in old:
                self.forget(row)
        while self.kept_bytes > most_bytes:
            ((owner, _),) = self._kept.most_common(1)
            self.forget(self._all(f"{_ANSWERED} AND owner = ? ORDER BY finished LIMIT 1", owner)[0])
        self._database.execute("DELETE FROM jobs WHERE answer_size IS NULL AND finished < ?", (now - ROW_SECONDS,))
        self._database.execute(
            "DELETE FROM jobs WHERE answer_size IS NULL AND finished IS NOT NULL AND number <= "
            "(SELECT max(number) FROM jobs) - ?",
            (MOST_ROWS,),
        )

    def _one(self, query: str, *values: str) -> Row | None:
        found = self._database.execute(query, values).fetchone()
        return None if found is None else Row(*found)

    def _all(self, query: str, *values: str | float) -> list[Row]:
        return [Row(*found) for found in self._database.execute(query, values)]


def _check_ours(folder: Path) -> None:
    """Raise PermissionError for a folder into which others could put files: a queue, answers, links to elsewhere."""
    about = os.stat(folder)
    if about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise PermissionError(
            f"{folder}, where jobs are kept, is open to others: chmod 700 {folder}, or --data another"
        )


def _locked(folder: Path) -> int:
    """The descriptor of a file that this process alone holds, until it ends in whatever way."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise OSError(
            f"another server keeps its jobs in {folder}: give this one a folder of its own (--data)"
        ) from error
    return descriptor
