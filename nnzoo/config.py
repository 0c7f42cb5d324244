"""`CONFIG`: where traces with remote=True go, the key that they are sent with, and what is shown of them.

What is set here holds in this process; else the environment is asked (NDIF_HOST, NDIF_API_KEY), else the file that
`CONFIG.save()` wrote.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

HOST, APIKEY, REMOTE_LOGGING = "API.HOST", "API.APIKEY", "APP.REMOTE_LOGGING"
_TYPES = {HOST: str, APIKEY: str, REMOTE_LOGGING: bool}


def config_file() -> Path:
    """The file of `CONFIG.save()`, in the user's config folder: $XDG_CONFIG_HOME, or ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "nnzoo" / "config.json"


class Settings:
    """What was set in this process, over what was saved."""

    def __init__(self) -> None:
        self._set: dict[str, Any] = {}
        self._read: tuple[Path, dict[str, Any]] | None = None  # the file and what stood in it, once somebody asked

    def get(self, name: str, variable: str | None = None) -> Any:
        """A setting: what was set here, else the environment's variable, else what was saved; else None."""
        if self._set.get(name) is not None:
            return self._set[name]
        if variable is not None and os.environ.get(variable):
            return os.environ[variable]
        return self._saved().get(name)

    def set(self, name: str, value: Any) -> None:
        """Set it for this process; None: as if it had never been set."""
        if value is not None and type(value) is not _TYPES[name]:
            raise TypeError(f"CONFIG.{name} is a {_TYPES[name].__name__}, not {type(value).__name__}")
        self._set[name] = value

    def save(self) -> Path:
        """Write what was set here, over what was saved before; readable for its owner alone, whole or not at all."""
        file = config_file()
        values = {**_read(file), **{name: value for name, value in self._set.items() if value is not None}}
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".config")  # for its owner alone from the start
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(values, stream, indent=2, sort_keys=True)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
        self._read = file, values
        return file

    def _saved(self) -> dict[str, Any]:
        file = config_file()
        if self._read is None or self._read[0] != file:
            self._read = file, _read(file)
        return self._read[1]


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file}, which CONFIG.save() writes, cannot be read: {error}; mend it or delete it"
        ) from error
    wrong = [
        name for name, kind in _TYPES.items() if isinstance(values, dict) and type(values.get(name, kind())) is not kind
    ]
    if not isinstance(values, dict) or wrong:
        raise ValueError(f"{file} holds no settings of nnzoo ({', '.join(wrong) or 'no object'}); mend it or delete it")
    return values


class ApiConfig:
    """The remote service."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.connections: dict[Any, Any] = {}  # open ones, kept alive: see nnzoo.remote.client.connect

    @property
    def HOST(self) -> str | None:  # nnsight's name for it
        """The service's address; NDIF_HOST in the environment, or the saved one, unless it was set here."""
        return self._settings.get(HOST, "NDIF_HOST")

    @HOST.setter
    def HOST(self, host: str | None) -> None:
        self._settings.set(HOST, host)

    @property
    def APIKEY(self) -> str | None:  # nnsight's name for it
        """The user's key; NDIF_API_KEY in the environment, or the saved one, unless it was set here."""
        return self._settings.get(APIKEY, "NDIF_API_KEY")

    @APIKEY.setter
    def APIKEY(self, key: str | None) -> None:
        self._settings.set(APIKEY, key)

    def __repr__(self) -> str:
        return f"ApiConfig(HOST={self.HOST!r}, APIKEY={'set' if self.APIKEY else None})"  # a key is not for logs


class AppConfig:
    """What this process shows."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def REMOTE_LOGGING(self) -> bool:  # nnsight's name for it
        """Whether a terminal or notebook shows how a remote job comes on; it does, unless it was set otherwise."""
        value = self._settings.get(REMOTE_LOGGING)
        return True if value is None else value

    @REMOTE_LOGGING.setter
    def REMOTE_LOGGING(self, shown: bool) -> None:
        self._settings.set(REMOTE_LOGGING, shown)

    def __repr__(self) -> str:
        return f"AppConfig(REMOTE_LOGGING={self.REMOTE_LOGGING})"


class Config:
    """Settings by nnsight's names: what is set here, over the environment, over what `save` wrote.

    >>> config = Config()
    >>> config.set_default_api_key("secret")
    >>> config.API.APIKEY
    'secret'
    """

    def __init__(self) -> None:
        self._settings = Settings()
        self.API, self.APP = ApiConfig(self._settings), AppConfig(self._settings)

    def set_default_api_key(self, key: str) -> None:
        """The key for traces with remote=True, until the process ends; `save()` keeps it for those to come.

        Raises ValueError for an empty one.
        """
        if not isinstance(key, str) or not key.strip():
            raise ValueError(f"an API key is a text that is not empty, not {key!r:.20}")
        self.API.APIKEY = key.strip()

    def save(self) -> Path:
        """Write what was set here into a file of the user's config folder, for later processes; gives its path.

        What comes from the environment stays there.
        """
        return self._settings.save()

    def __repr__(self) -> str:
        return f"Config(API={self.API!r}, APP={self.APP!r})"


CONFIG = Config()
