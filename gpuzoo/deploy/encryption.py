"""Encrypted files: AES-256-GCM in chunks, in the STREAM construction.

An encrypted file is a header and chunks. Header, 90 bytes: 16 of `MAGIC`, version,
key derivation (0: key file, 1: scrypt), log2 of scrypt's n, 32 of salt, 7 of nonce
prefix, 32 of key commitment. The key of the file and the commitment are HKDF-SHA256 of
the passphrase's scrypt, or of the key file, with that salt, and with the header before
the commitment as info. A chunk is 1 MiB of plaintext (the last one: 1 byte to 1 MiB)
and 16 bytes of tag. Its nonce is prefix, 4 bytes of number, 1 byte that is 1 in the
last chunk and 0 in others; its associated data is the header.

The plaintext is 8 bytes of length, a manifest in JSON and the contents of its files.
"""

import dataclasses
import hmac
import itertools
import os
import pathlib
import secrets
import struct
from collections.abc import Iterable, Iterator

from gpuzoo.deploy import contents
from gpuzoo.deploy.keys import Secret, check_installed
from gpuzoo.errors import CheckFailed, GpuzooError
from gpuzoo.files import expand, new_file, open_regular
from gpuzoo.home import redact

MAGIC = b"gpuzoo-encrypted"
CHUNK = 1 << 20
TAG = 16
_VERSION = 1
_FIELDS = struct.Struct(">16s3B32s7s")
_COMMITMENT = 32
HEADER = _FIELDS.size + _COMMITMENT
_LOG_N = 17  # scrypt with r 8 and p 1: 128 MiB
# Of a file that is decrypted: anybody may have written it, and n sets the memory.
_LARGEST_LOG_N = 18


@dataclasses.dataclass(frozen=True)
class Header:
    """Everything that is in the open."""

    with_passphrase: bool
    log_n: int
    salt: bytes
    prefix: bytes
    commitment: bytes = b""

    def fields(self) -> bytes:
        """Return the bytes before the commitment."""
        return _FIELDS.pack(
            MAGIC, _VERSION, self.with_passphrase, self.log_n, self.salt, self.prefix
        )

    def whole(self) -> bytes:
        return self.fields() + self.commitment


def read_header(path: str | pathlib.Path) -> Header:
    """Return the header of an encrypted file; no key is needed.

    Raises:
        GpuzooError: it cannot be read, is not an encrypted file, or its scrypt needs
            more memory than 256 MiB.
    """
    path = expand(path)
    with _opened(path) as file:
        return _header(file.read(HEADER), path)


def encrypt(path: str | pathlib.Path, out: str | pathlib.Path, secret: Secret) -> dict:
    """Encrypt a file, or a folder and everything in it, into one file.

    Args:
        path: a file or a folder without links.
        out: the file to write; an existing one is not replaced.

    Returns:
        `out`, `files`, `bytes` (of their contents) and `encrypted_bytes`.

    Raises:
        GpuzooError: something in the folder is not a regular file, or changes while it
            is read; `out` exists or is inside of the folder. Nothing is written.
    """
    check_installed()
    path, out = expand(path), expand(out)
    check_out(out)
    if path.is_dir() and contents.is_inside(out, path):
        raise GpuzooError(f"--out {str(out)!r} is inside of the folder to be encrypted")
    source = contents.Source(path)
    scrypt = _LOG_N if secret.is_passphrase else 0
    header = Header(
        secret.is_passphrase, scrypt, secrets.token_bytes(32), secrets.token_bytes(7)
    )
    cipher, commitment = _derive(secret, header)
    header = dataclasses.replace(header, commitment=commitment)
    try:
        with new_file(out) as file:
            file.write(header.whole())
            for number, chunk, last in _numbered(source.blocks()):
                nonce = _nonce(header, number, last)
                file.write(cipher.encrypt(nonce, chunk, header.whole()))
            written = file.tell()
    except OSError as error:
        raise GpuzooError(
            f"--out {str(out)!r} cannot be written: {error.strerror or error}"
        ) from None
    return {
        "out": redact(str(out)), "files": len(source.files), "bytes": source.size,
        "encrypted_bytes": written,
    }  # fmt: skip


def decrypt(path: str | pathlib.Path, out: str | pathlib.Path, secret: Secret) -> dict:
    """Decrypt what `encrypt` has written.

    Everything goes into a private temporary file or folder beside `out`, which is
    renamed when the last chunk is authenticated. Files get mode 0600, folders 0700.

    Args:
        path: the encrypted file.
        out: the file or folder to make; an existing one is not replaced.

    Returns:
        `out`, `files` and `bytes`.

    Raises:
        CheckFailed: the passphrase or key is another, or the file has been changed or
            cut. Nothing is written.
        GpuzooError: it is not an encrypted file, or `out` cannot be written.
    """
    check_installed()
    path, out = expand(path), expand(out)
    check_out(out)
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = _header(file.read(HEADER), path)
        check_kind(header, secret, path)
        cipher, commitment = _derive(secret, header)
        if not hmac.compare_digest(commitment, header.commitment):
            what = "passphrase" if secret.is_passphrase else "key"
            raise CheckFailed(f"{path}: wrong {what}, or its header has been changed")
        plain = contents.Plaintext(
            _authenticated(file, cipher, header, path), _plain_size(size, path), path
        )
        try:
            files, written = contents.write(plain, out)
        except OSError as error:
            raise GpuzooError(
                f"--out {str(out)!r} cannot be written: {error.strerror or error}"
            ) from None
    return {"out": redact(str(out)), "files": files, "bytes": written}


def check_out(out: pathlib.Path) -> None:
    """Raise GpuzooError if `--out` exists, or its folder does not."""
    out = expand(out)
    if os.path.lexists(out):
        raise GpuzooError(f"--out {str(out)!r} exists; name another")
    if not out.parent.is_dir():
        raise GpuzooError(f"--out {str(out)!r}: there is no such folder")


def check_kind(header: Header, secret: Secret, path: pathlib.Path) -> None:
    """Raise GpuzooError if a file was encrypted with the other kind of secret."""
    if header.with_passphrase and not secret.is_passphrase:
        raise GpuzooError(f"{path} was encrypted with a passphrase, not with a key")
    if secret.is_passphrase and not header.with_passphrase:
        raise GpuzooError(f"{path} was encrypted with a key file; use --key")


def _opened(path: pathlib.Path):
    try:
        return open(open_regular(path), "rb")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise GpuzooError(f"{path} cannot be read: {why}") from None


def _header(content: bytes, path: pathlib.Path) -> Header:
    if len(content) < HEADER or not content.startswith(MAGIC):
        raise GpuzooError(f"{path} is not a file that gpuzoo encrypt has written")
    _, version, kind, log_n, salt, prefix = _FIELDS.unpack_from(content)
    if version != _VERSION or kind > 1:
        raise GpuzooError(
            f"{path} has format {version}.{kind}; this version of gpuzoo reads format "
            f"{_VERSION}"
        )
    if not (1 <= log_n <= _LARGEST_LOG_N if kind else log_n == 0):
        raise GpuzooError(
            f"{path} asks for scrypt with n = 2^{log_n}; gpuzoo computes at most "
            f"2^{_LARGEST_LOG_N} (256 MiB)"
        )
    return Header(bool(kind), log_n, salt, prefix, content[_FIELDS.size :])


def _derive(secret: Secret, header: Header) -> tuple:
    """Return the cipher of a file and the commitment to its key."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    root = secret.content
    if secret.is_passphrase:
        try:
            kdf = Scrypt(salt=header.salt, length=32, n=1 << header.log_n, r=8, p=1)
            root = kdf.derive(root)
        except MemoryError:
            raise GpuzooError(
                f"scrypt needs {1 << header.log_n >> 10} MiB of memory"
            ) from None
    # Without a commitment, a file could be made that opens to other content with
    # another key: GCM's tags do not bind the key.
    hkdf = HKDF(SHA256(), 32 + _COMMITMENT, salt=header.salt, info=header.fields())
    derived = hkdf.derive(root)
    return AESGCM(derived[:32]), derived[32:]


def _nonce(header: Header, number: int, last: bool) -> bytes:
    return header.prefix + number.to_bytes(4) + bytes([last])


def _numbered(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    """Cut blocks into chunks: number, content, whether it is the last one."""
    rest = bytearray()
    numbers = itertools.count()
    for block in blocks:
        rest += block
        while len(rest) > CHUNK:  # not >=: the last chunk must not be empty
            yield next(numbers), bytes(rest[:CHUNK]), False
            del rest[:CHUNK]
    yield next(numbers), bytes(rest), True


def _plain_size(size: int, path: pathlib.Path) -> int:
    """Return how many bytes of plaintext an encrypted file of that size has."""
    full, rest = divmod(size - HEADER, CHUNK + TAG)
    if size <= HEADER or 0 < rest <= TAG:
        raise CheckFailed(f"{path} is cut: its last chunk is not whole")
    return full * CHUNK + max(0, rest - TAG)


def _authenticated(file, cipher, header: Header, path: pathlib.Path) -> Iterator[bytes]:
    """Decrypt the chunks one by one."""
    from cryptography.exceptions import InvalidTag

    whole = header.whole()
    following = _read(file, path)
    for number in range(2**32):
        chunk, following = following, _read(file, path)
        try:
            plain = cipher.decrypt(_nonce(header, number, not following), chunk, whole)
        except InvalidTag:
            raise CheckFailed(
                f"{path}: chunk {number + 1} is not authentic: the file has been "
                "changed or cut, or chunks have been exchanged"
            ) from None
        yield plain
        if not following:
            return
    raise CheckFailed(f"{path} has too many chunks")


def _read(file, path: pathlib.Path) -> bytes:
    try:
        return file.read(CHUNK + TAG)
    except OSError as error:
        raise GpuzooError(f"{path} cannot be read: {error.strerror or error}") from None
