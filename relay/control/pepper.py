"""The pepper: the secret under which digests of API keys are made. It lives in a file outside the database.

Whoever has only the database (a backup, a leaked copy) can neither check guesses nor make keys. Whoever loses the file
loses every key: it belongs into the operator's backup, apart from the store's.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from relay.errors import RelayError
from relay.storage.ownership import adopt

PEPPER_NAME = "pepper"
_PEPPER_BYTES = 32


class PepperError(RelayError):
    """The pepper file is missing though keys exist, is damaged, or is readable by others."""


class Pepper(NamedTuple):
    """`version` is stored beside each digest, so that a pepper can be replaced one day."""

    version: int
    value: bytes

    def __repr__(self) -> str:
        return f"Pepper(version={self.version})"


def check_value(pepper: Pepper) -> bytes:
    """By which a store knows its pepper again; it tells nothing about it."""
    return hmac.digest(pepper.value, b"relay: which pepper this is", "sha256")


def load_pepper(data_dir: str | Path, *, create: bool) -> Pepper:
    """The pepper of a data directory, whose lock the caller holds. `create`: make it if absent (no key exists yet).

    Raises PepperError.
    """
    path = Path(data_dir) / PEPPER_NAME
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1024).decode("ascii", "replace").split()
    except FileNotFoundError:
        if not create:
            raise PepperError(
                f"{path}: the file is missing; without it no existing API key can be checked. Put it back from a backup"
            ) from None
        return _create(path)
    except OSError as failure:
        raise PepperError(f"{path}: {failure.strerror or 'cannot be read'}") from None
    if mode & 0o077:
        raise PepperError(f"{path}: expected mode 0600, got {mode & 0o777:04o}: others may have read it")
    try:
        version, value = int(text[0]), bytes.fromhex(text[1])
    except (IndexError, ValueError):
        raise PepperError(f"{path}: the file is damaged. Put it back from a backup") from None
    if version < 1 or len(value) != _PEPPER_BYTES:
        raise PepperError(f"{path}: the file is damaged. Put it back from a backup")
    return Pepper(version, value)


def _create(path: Path) -> Pepper:
    """Complete or absent, also after a crash: written beside, synced, then renamed."""
    pepper = Pepper(1, secrets.token_bytes(_PEPPER_BYTES))
    beside = path.with_name(PEPPER_NAME + ".new")
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(f"{pepper.version} {pepper.value.hex()}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        adopt(beside, path.parent)
        os.rename(beside, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as failure:
        raise PepperError(f"{path}: {failure.strerror or 'cannot be written'}") from None
    return pepper
