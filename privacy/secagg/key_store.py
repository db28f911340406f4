"""Where a scheme keeps a key that serves more than one sum."""

from typing import Protocol


class KeyStore(Protocol):
    """Durable memory of one scheme's key material at one site. What it holds is secret."""

    def load(self) -> bytes | None:
        """The bytes stored last; None if there are none."""

    def store(self, secret: bytes) -> None:
        """Replace them, durably, before returning."""


class MemoryKeyStore:
    """For rehearsals of one sum and tests: it forgets with the process."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret

    def load(self) -> bytes | None:
        """The bytes stored last; None if there are none."""
        return self._secret

    def store(self, secret: bytes) -> None:
        """Replace them."""
        self._secret = secret
