"""Keys: who may use a server. A file holds a line for each, its name and its hash; the key itself is kept nowhere."""

import hmac
import logging
import os
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

log = logging.getLogger(__name__)
_LINE = re.compile(r"(?P<name>\S+)\s+sha256:(?P<digest>[0-9a-f]{64})")
HEADING = (
    "# Keys of an nnzoo server: names and hashes. `nnzoo keys FILE NAME` adds one; delete a line to take one back.\n"
)


@dataclass(frozen=True)
class Owner:
    """Whose a job is: the hash of a key, and a name for the log."""

    digest: str
    name: str


@runtime_checkable
class Keys(Protocol):
    """Who is behind a key."""

    def owner(self, key: str | None) -> Owner | None:
        """The owner of a key; None where it is none."""


class AnyKey:
    """Any key will do, and none at all too; what one key sent is still not another's. For loopback."""

    def owner(self, key: str | None) -> Owner | None:
        digest = sha256((key or "").encode()).hexdigest()
        return Owner(digest, f"key-{digest[:6]}")


class KeyFile:
    """The keys of a file, which is read again when it changes; ValueError or OSError where it cannot be at first.

    A key has 256 random bits, so that a plain hash of it tells nothing; all hashes are compared, in constant time.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: object = None
        self._owners: list[Owner] = []
        self._read()

    def owner(self, key: str | None) -> Owner | None:
        try:
            self._read()
        except (OSError, ValueError) as error:  # somebody is writing it: those who had a key keep it
            log.error("the file of keys cannot be read, and its last state holds: %s", error)
        digest = sha256((key or "").encode()).hexdigest()
        found = None
        for owner in self._owners:
            if hmac.compare_digest(owner.digest, digest):
                found = owner
        return found

    def _read(self) -> None:
        about = os.stat(self._file)
        if about.st_mode & 0o022:
            raise ValueError(f"others may write into {self._file}, and so let anybody in: chmod 600 {self._file}")
        seen = (about.st_mtime_ns, about.st_size, about.st_ino)
        if seen != self._seen:
            self._owners, self._seen = read_keys(self._file), seen


def read_keys(file: Path) -> list[Owner]:
    """The names and hashes of a file. Raises ValueError for a line that is neither, OSError for no file."""
    owners = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = _LINE.fullmatch(line.strip())
        if entry is None:
            raise ValueError(f"{file}, line {number}: a line is `NAME sha256:` and 64 hexadecimal digits")
        owners.append(Owner(entry["digest"], entry["name"]))
    return owners


def new_key(file: Path, name: str) -> str:
    """A new key, whose name and hash are added to a file. Raises ValueError for a name that is there, or is none."""
    if not re.fullmatch(r"[\w.@+-]{1,64}", name):
        raise ValueError(f"a key's name is of letters, digits and any of . @ + - _ (64 at most), not {name!r:.80}")
    if file.exists() and name in {owner.name for owner in read_keys(file)}:
        raise ValueError(f"{file} has a key by the name of {name}; take its line out to replace it")
    key = f"nnzoo-{secrets.token_urlsafe(32)}"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open(descriptor, "a", encoding="utf-8") as stream:
        if not os.fstat(descriptor).st_size:
            stream.write(HEADING)
        stream.write(f"{name} sha256:{sha256(key.encode()).hexdigest()}\n")
    return key
