"""Key files and passphrases. Their contents are never printed or recorded."""

import dataclasses
import getpass
import hashlib
import os
import pathlib
import re
import secrets
import stat
import unicodedata
import warnings

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, new_file, open_regular
from gpuzoo.home import redact

SIGNING, ENCRYPTION = "signing", "encryption"
_LARGEST = 10_000  # bytes of a key or a passphrase file
_SHORTEST = 8  # characters of a new passphrase (NIST SP 800-63B)
_HEAD = b"gpuzoo-encryption-key-1:"
_ENCRYPTION_KEY = re.compile(re.escape(_HEAD) + rb"([0-9a-f]{64})\n?")


@dataclasses.dataclass(frozen=True, repr=False)  # repr would show it in a traceback
class Secret:
    """What an encryption key is derived from: a passphrase, or 32 random bytes."""

    content: bytes
    is_passphrase: bool


def check_installed() -> None:
    """Raise GpuzooError if the library cryptography is not installed."""
    try:
        import cryptography.exceptions  # noqa: F401
    except ImportError:
        raise GpuzooError(
            "the library cryptography is not installed; "
            "run: pip install 'gpuzoo[protect]'"
        ) from None


def new_key(path: str | pathlib.Path, kind: str = SIGNING) -> dict:
    """Create a key file with mode 0600 that replaces no file.

    Args:
        path: of the file; a signing key has its public key beside it, `<path>.pub`.
        kind: `signing`: Ed25519, PKCS#8 in PEM; `encryption`: 32 random bytes.

    Returns:
        `key`, `public_key` (a path or None) and `public_key_sha256`.

    Raises:
        GpuzooError: one of the files exists or cannot be written.
    """
    check_installed()
    private = expand(path)
    public = private.with_name(private.name + ".pub")
    signs = kind == SIGNING
    for file in (private, public)[: 1 + signs]:
        if os.path.lexists(file):
            raise GpuzooError(f"{file} exists; a key is never overwritten")
    try:
        if not signs:
            content = _HEAD + secrets.token_hex(32).encode() + b"\n"
            with new_file(private, 0o600) as file:
                file.write(content)
            return {
                "key": redact(str(private)), "public_key": None,
                "public_key_sha256": None,
            }  # fmt: skip
        return _new_signing_key(private, public)
    except OSError as error:
        raise GpuzooError(
            f"key {private} cannot be written: {error.strerror or error}"
        ) from None


def _new_signing_key(private: pathlib.Path, public: pathlib.Path) -> dict:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    with new_file(private, 0o600) as file:
        file.write(
            key.private_bytes(
                form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
            )
        )
    try:
        with new_file(public) as file:
            file.write(
                key.public_key().public_bytes(
                    form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
                )
            )
    except BaseException:
        private.unlink()
        raise
    return {
        "key": redact(str(private)), "public_key": redact(str(public)),
        "public_key_sha256": public_digest(key.public_key()),
    }  # fmt: skip


def public_digest(key) -> str:
    """Return the sha256 of the 32 bytes of an Ed25519 public key, which names it."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def load_private(path: str, passphrase_file: str | None = None):
    """Return an Ed25519 private key of a PEM file; the passphrase of an encrypted one
    is read from a file or the terminal.

    Raises:
        GpuzooError: other users may read the file, or it is not such a key.
    """
    check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_secret(path, "--key")
    if content.startswith(_HEAD):
        raise GpuzooError(
            f"--key {path!r} is an encryption key; expected a signing key: "
            "gpuzoo new-key PATH"
        )
    try:
        try:
            key = load_pem_private_key(content, None)
        except TypeError:  # it is encrypted
            word = passphrase(passphrase_file, f"passphrase of {path}: ")
            key = load_pem_private_key(content, word)
        else:
            if passphrase_file:
                raise GpuzooError(f"--passphrase-file: key {path!r} has no passphrase")
    except GpuzooError:
        raise
    except Exception as error:  # of what is no key the library raises many kinds
        if _is_encrypted(content):
            raise GpuzooError(
                f"--key {path!r}: wrong passphrase, or it is damaged"
            ) from None
        raise GpuzooError(
            f"--key {path!r} is not a private key in PEM format "
            f"({type(error).__name__}); gpuzoo new-key PATH makes one"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise GpuzooError(
            f"--key {path!r} is not an Ed25519 key ({type(key).__name__}); "
            "gpuzoo new-key PATH makes one"
        )
    return key


def _is_encrypted(content: bytes) -> bool:
    return b"ENCRYPTED" in content


def load_public(path: str):
    """Return the Ed25519 public key of a PEM file.

    Raises:
        GpuzooError: it is not one.
    """
    check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read(path, "--signed-by", lambda status: None)
    if b"PRIVATE KEY" in content:
        raise GpuzooError(
            f"--signed-by {path!r} is a private key; expected the public one, "
            f"{path}.pub; give the private one to nobody"
        )
    try:
        key = load_pem_public_key(content)
    except Exception as error:  # of what is no key the library raises many kinds
        raise GpuzooError(
            f"--signed-by {path!r} is not a public key in PEM format "
            f"({type(error).__name__})"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise GpuzooError(
            f"--signed-by {path!r} is not an Ed25519 key ({type(key).__name__})"
        )
    return key


def secret(
    passphrase_file: str | None, key_file: str | None, *, new: bool = False
) -> Secret:
    """Return what to encrypt or decrypt with; without a file the passphrase is asked
    for.

    Args:
        new: of a passphrase: ask twice, and refuse a short one.
    """
    if passphrase_file and key_file:
        raise GpuzooError("--passphrase-file and --key: give one of them")
    if not key_file:
        return Secret(passphrase(passphrase_file, new=new), True)
    found = _ENCRYPTION_KEY.fullmatch(read_secret(key_file, "--key"))
    if not found:
        raise GpuzooError(
            f"--key {key_file!r} is not an encryption key; "
            "gpuzoo new-key PATH --for encryption makes one"
        )
    return Secret(bytes.fromhex(found[1].decode()), False)


def passphrase(
    file: str | None, prompt: str = "passphrase: ", *, new: bool = False
) -> bytes:
    """Return a passphrase in UTF-8, read from a file or asked for on the terminal.

    Raises:
        GpuzooError: the file may be read by other users, or has no or several lines;
            there is no terminal; a new one is short or not typed twice the same.
    """
    if file:
        try:
            text = read_secret(file, "--passphrase-file").decode()
        except UnicodeDecodeError:
            raise GpuzooError(f"--passphrase-file {file!r} is not UTF-8") from None
        text = text.removesuffix("\n").removesuffix("\r")
        if "\n" in text:
            raise GpuzooError(f"--passphrase-file {file!r} has several lines")
    else:
        text = _ask(prompt)
        if new and _ask("the same again: ") != text:
            raise GpuzooError("the two passphrases differ")
    if not text:
        raise GpuzooError("the passphrase is empty")
    if new and len(text) < _SHORTEST:
        raise GpuzooError(
            f"the passphrase is too short: expected {_SHORTEST} characters or more"
        )
    try:  # one form of each letter: keyboards and systems differ in it
        return unicodedata.normalize("NFC", text).encode()
    except UnicodeEncodeError:
        raise GpuzooError("the passphrase is not UTF-8") from None


def _ask(prompt: str) -> str:
    try:
        with warnings.catch_warnings():
            # It would go on, and show what is typed.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(prompt)
    except (getpass.GetPassWarning, EOFError):
        raise GpuzooError(
            "there is no terminal to ask for the passphrase; "
            "use --passphrase-file FILE (mode 0600)"
        ) from None


def read_secret(path: str, argument: str) -> bytes:
    """Return the content of a file that only its owner may read.

    Raises:
        GpuzooError: it has another mode than 0600 or 0400, or cannot be read.
    """

    def check(status: os.stat_result) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if path.endswith(".pub"):
            raise GpuzooError(
                f"{argument} {path!r} is a public key, expected the private one, "
                f"{path.removesuffix('.pub')}"
            )
        if os.name == "posix" and mode & 0o177:
            raise GpuzooError(
                f"{argument} {path!r} has mode {mode:04o}, expected 0600, as other "
                f"users must not read it; run: chmod 600 {path}"
            )

    return _read(path, argument, check)


def _read(path: str, argument: str, check) -> bytes:
    try:
        with open(open_regular(expand(path)), "rb") as file:
            check(os.fstat(file.fileno()))
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, GpuzooError):
            raise
        why = getattr(error, "strerror", None) or error
        raise GpuzooError(f"{argument} {path!r} cannot be read: {why}") from None
    if len(content) > _LARGEST:
        raise GpuzooError(
            f"{argument} {path!r} is larger than {_LARGEST:,} bytes: not a key or a "
            "passphrase"
        )
    return content
