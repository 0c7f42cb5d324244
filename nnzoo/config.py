"""`CONFIG`: where traces with remote=True go, and the key that they are sent with."""

import os


class ApiConfig:
    """The remote service. What is not set here is read from the environment, when somebody asks."""

    def __init__(self) -> None:
        self._host: str | None = None
        self._key: str | None = None

    @property
    def HOST(self) -> str | None:  # nnsight's name for it
        """The service's address; NDIF_HOST in the environment unless it was set here."""
        return self._host or os.environ.get("NDIF_HOST") or None

    @HOST.setter
    def HOST(self, host: str | None) -> None:
        self._host = host

    @property
    def APIKEY(self) -> str | None:  # nnsight's name for it
        """The user's key; NDIF_API_KEY in the environment unless it was set here."""
        return self._key or os.environ.get("NDIF_API_KEY") or None

    @APIKEY.setter
    def APIKEY(self, key: str | None) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"ApiConfig(HOST={self.HOST!r}, APIKEY={'set' if self.APIKEY else None})"  # a key is not for logs


class Config:
    """Settings of this process, by nnsight's names. Nothing is written to disk, and nothing sent anywhere.

    >>> config = Config()
    >>> config.set_default_api_key("secret")
    >>> config.API.APIKEY
    'secret'
    """

    def __init__(self) -> None:
        self.API = ApiConfig()

    def set_default_api_key(self, key: str) -> None:
        """The key for traces with remote=True, until the process ends. Raises ValueError for an empty one."""
        if not isinstance(key, str) or not key.strip():
            raise ValueError(f"an API key is a text that is not empty, not {key!r:.20}")
        self.API.APIKEY = key.strip()

    def __repr__(self) -> str:
        return f"Config(API={self.API!r})"


CONFIG = Config()
