"""Secrets at rest: what must stand in the log and nobody may read there is sealed with the deployment's key.

AES-256-GCM by `cryptography`, loaded when something is sealed or opened for the first time. A token says which key it
was sealed with, so that a process with another key can say so instead of reporting garbage.
"""

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from libs.events.log import LogError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_FILE = "secret-key"
_NONCE_BYTES = 12
_VERSION = "1"


class SealError(LogError):
    """This process cannot open what another sealed. The text says which key is missing; data is not damaged."""


class OtherKey(SealError):
    """It was sealed with a key that is not this process's: waiting does not help."""


class Vault:
    """Seals and opens. `key()` gives the deployment's key, or None as long as there is none. Thread-safe."""

    def __init__(self, key: Callable[[], str | None]) -> None:
        self._key = key
        self._made: tuple[str, AESGCM] | None = None

    def seal(self, data: bytes) -> str:
        """A token that only this key opens. Raises SealError."""
        key_id, cipher = self._cipher()
        nonce = os.urandom(_NONCE_BYTES)
        sealed = base64.urlsafe_b64encode(nonce + cipher.encrypt(nonce, data, None)).decode()
        return f"{_VERSION}.{key_id}.{sealed}"

    def open(self, token: str) -> bytes:
        """What was sealed. Raises SealError."""
        from cryptography.exceptions import InvalidTag

        version, _, rest = token.partition(".")
        sealed_with, _, text = rest.partition(".")
        if version != _VERSION:
            raise SealError(f"a secret is sealed in a form {version[:8]!r} that is newer than this process. Upgrade it")
        key_id, cipher = self._cipher(sealed_with)
        if sealed_with != key_id:
            raise OtherKey(
                f"a secret is sealed with the key {sealed_with[:8]}, this process has the key {key_id}. "
                f"Set FLOWLEDGER_SECRET_KEY to the deployment's key (it is kept in {KEY_FILE} in the data folder)"
            )
        try:
            raw = base64.urlsafe_b64decode(text.encode())
            return cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError, binascii.Error) as error:
            raise SealError("a sealed secret was changed in the log and cannot be opened") from error

    def _cipher(self, wanted: str = "") -> "tuple[str, AESGCM]":
        if self._made is None:
            key = self._key()
            if key is None:
                which = f" {wanted[:8]}" if wanted else ""
                raise SealError(
                    f"the key{which} for sealed secrets is missing. Set FLOWLEDGER_SECRET_KEY to the deployment's key "
                    f"(it is kept in {KEY_FILE} in the data folder of the API)"
                )
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._made = key_id_of(key), AESGCM(hashlib.sha256(b"flowledger/seal/" + key.encode()).digest())
        return self._made


class Unopened(Vault):
    """Opens nothing: sealed values are read as they stand, to be copied into another record."""

    def __init__(self) -> None:
        super().__init__(lambda: None)


def key_id_of(key: str) -> str:
    """Tells keys apart and gives nothing away of them."""
    return hashlib.sha256(b"flowledger/key-id/" + key.encode()).hexdigest()[:8]


def stored_key(given: str | None, folder: Path, *, make: bool) -> Callable[[], str | None]:
    """The key: `given`, else the one in the data folder, made there (0600) when there is none and `make` is set."""

    def find() -> str | None:
        if given:
            return given
        path = folder / KEY_FILE
        if make and not path.exists():
            try:
                folder.mkdir(0o700, parents=True, exist_ok=True)
                _write_once(path, secrets.token_urlsafe(32))
            except OSError as error:
                text = f"no key for secrets can be kept in {folder}: {error.strerror}. Set FLOWLEDGER_SECRET_KEY"
                raise SealError(text) from error
        try:
            return path.read_text("utf-8").strip() or None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SealError(f"the key file {path} cannot be read: {error.strerror}") from error

    return find


def _write_once(path: Path, key: str) -> None:
    """Two processes may start at once: the file appears whole, and the first one's stays."""
    half = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(half, path)
        except FileExistsError:
            pass
    finally:
        half.unlink(missing_ok=True)
