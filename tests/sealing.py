"""What the tests of encryption share."""

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gpuzoo.deploy import encryption
from gpuzoo.deploy.encryption import decrypt
from gpuzoo.deploy.keys import Secret
from gpuzoo.errors import GpuzooError

KEY = Secret(bytes(range(32)), False)
WORD = Secret(b"correct horse", True)
FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """Chunks of 64 bytes, so that a small file has many."""
    monkeypatch.setattr(encryption, "CHUNK", 64)
    monkeypatch.setattr(os, "sync", lambda: None)  # slow on a busy disk


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "folder"
    (top / "a" / "b").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "a" / "b" / "ä ö.txt").write_text("deep")
    (top / "a" / "nothing").write_text("")
    (top / ".hidden").write_bytes(bytes(range(256)))
    (top / "x").write_text("secret " * 20)
    return top


def tree(top) -> dict:
    """Everything below a folder: name -> content, None for a folder."""
    return {
        path.relative_to(top).as_posix(): path.read_bytes() if path.is_file() else None
        for path in top.rglob("*")
    }


def opens(content: bytes, tmp_path, secret=KEY):
    """Decrypt bytes; return the error, or what was written. An error leaves nothing."""
    place = tmp_path / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "enc").write_bytes(content)
    before = tree(tmp_path)
    try:
        decrypt(place / "enc", place / "out", secret)
    except GpuzooError as error:
        assert tree(tmp_path) == before
        assert "\n" not in str(error)
        return error
    out = place / "out"
    assert {path.name for path in place.iterdir()} == {"enc", "out"}
    return tree(out) if out.is_dir() else out.read_bytes()


def seal(plain: bytes, tmp_path, secret=KEY, *, end=None) -> bytes:
    """Encrypt any plaintext, as somebody would who has the key."""
    header = encryption.Header(secret.is_passphrase, 0, b"s" * 32, b"p" * 7)
    cipher, commitment = encryption._derive(secret, header)
    header = encryption.Header(False, 0, b"s" * 32, b"p" * 7, commitment)
    whole = header.whole()
    for number, chunk, last in encryption._numbered([plain]):
        last = last and end is None
        whole += cipher.encrypt(
            encryption._nonce(header, number, last), chunk, header.whole()
        )
    if end is not None:
        nonce = encryption._nonce(header, number + 1, True)
        whole += cipher.encrypt(nonce, end, header.whole())
    return whole


def packed(manifest, rest=b"") -> bytes:
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return len(text).to_bytes(8) + text + rest


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
    min_size=1, max_size=30,
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)  # fmt: skip
