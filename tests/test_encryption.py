"""What was encrypted comes back to the byte, or nothing does."""

import contextlib
import fcntl
import io
import itertools
import os
import pty
import shutil
import stat
import struct
import subprocess
import sys

import pytest
import sealing
from conftest import environment
from hypothesis import given
from hypothesis import strategies as st
from sealing import FUZZ, KEY, NAMES, WORD, opens, tree
from test_signing import one_line

from gpuzoo.deploy import encryption, keys
from gpuzoo.deploy.encryption import HEADER, TAG, decrypt, encrypt
from gpuzoo.deploy.keys import Secret
from gpuzoo.errors import CheckFailed, GpuzooError

small, folder = sealing.small, sealing.folder


# --- round trips --------------------------------------------------------------------


@pytest.mark.parametrize("secret", [KEY, WORD], ids=["key", "passphrase"])
def test_a_folder_comes_back(secret, folder, tmp_path):
    made = encrypt(folder, tmp_path / "enc", secret)
    assert made["files"] == 4 and made["encrypted_bytes"] > made["bytes"] == 400
    assert (tmp_path / "enc").stat().st_size == made["encrypted_bytes"]
    assert decrypt(tmp_path / "enc", tmp_path / "out", secret)["files"] == 4
    assert tree(tmp_path / "out") == tree(folder)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    whole = (tmp_path / "enc").read_bytes()
    assert b"secret" not in whole and b"hidden" not in whole
    encrypt(folder, tmp_path / "enc2", secret)  # never the same bytes again
    assert (tmp_path / "enc2").read_bytes()[HEADER:] != whole[HEADER:]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"folder", "enc", "enc2", "out"}


@pytest.mark.parametrize("extra", range(-3, 70))
def test_a_file_of_every_length_comes_back(extra, small, tmp_path):
    """Around the chunks' borders, where the last one is full or has one byte."""
    size = 64 + extra if extra < 0 else extra
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    encrypt(tmp_path / "file", tmp_path / "enc", KEY)
    assert opens((tmp_path / "enc").read_bytes(), tmp_path) == content


def test_a_large_file_comes_back(tmp_path):
    content = os.urandom(3 * encryption.CHUNK + 5)
    (tmp_path / "file").write_bytes(content)
    made = encrypt(tmp_path / "file", tmp_path / "enc", KEY)
    assert made["encrypted_bytes"] < len(content) + HEADER + 4 * TAG + 50
    assert opens((tmp_path / "enc").read_bytes(), tmp_path) == content
    assert stat.S_IMODE((tmp_path / "place" / "out").stat().st_mode) == 0o600


@FUZZ
@given(
    files=st.dictionaries(
        st.lists(NAMES, min_size=1, max_size=3).map(tuple),
        st.binary(max_size=200),
        max_size=5,
    )
)
def test_any_folder_comes_back(files, small, tmp_path):
    for name in ("folder", "enc"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "folder").mkdir()
    for parts, content in files.items():
        path = tmp_path.joinpath("folder", *parts)
        with contextlib.suppress(
            FileExistsError, NotADirectoryError, IsADirectoryError
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    encrypt(tmp_path / "folder", tmp_path / "enc", KEY)
    found = opens((tmp_path / "enc").read_bytes(), tmp_path)
    assert found == tree(tmp_path / "folder")


# --- damage -------------------------------------------------------------------------


@pytest.fixture
def encrypted(small, folder, tmp_path) -> bytes:
    """A file of about ten chunks of 64 bytes."""
    encrypt(folder, tmp_path / "enc", KEY)
    return (tmp_path / "enc").read_bytes()


def cut(content: bytes) -> list[bytes]:
    size = encryption.CHUNK + TAG
    body = content[HEADER:]
    return [content[:HEADER], *(body[i : i + size] for i in range(0, len(body), size))]


def test_every_flipped_bit_and_every_cut_is_refused(small, tmp_path):
    (tmp_path / "file").write_text("attack at dawn" * 9)
    encrypt(tmp_path / "file", tmp_path / "enc", KEY)
    content = (tmp_path / "enc").read_bytes()
    for at, bit in itertools.product(range(len(content)), range(8)):
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        error = opens(bytes(changed), tmp_path)
        assert isinstance(error, GpuzooError), (at, bit)
        assert isinstance(error, CheckFailed) or at < 19, (at, bit, error)
    for size in range(len(content)):
        assert isinstance(opens(content[:size], tmp_path), GpuzooError), size
    for more in (b"\0", b"\0" * TAG, b"\0" * 40, content, content[HEADER:]):
        assert isinstance(opens(content + more, tmp_path), CheckFailed)


def test_chunks_swapped_dropped_doubled_or_of_another_file(encrypted, folder, tmp_path):
    head, *chunks = cut(encrypted)
    encrypt(folder, tmp_path / "other", KEY)
    other = cut((tmp_path / "other").read_bytes())
    assert len(chunks) > 8 and b"".join([head, *chunks]) == encrypted
    for i, j in itertools.combinations(range(len(chunks)), 2):
        swapped = list(chunks)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        assert isinstance(opens(b"".join([head, *swapped]), tmp_path), CheckFailed)
    for i in range(len(chunks)):
        for changed in (
            [*chunks[:i], *chunks[i + 1 :]],
            [*chunks[:i], chunks[i], *chunks[i:]],
            [*chunks[:i], other[i + 1], *chunks[i + 1 :]],
            chunks[:i],
            [*chunks[: i + 1], chunks[-1]][: i + 2] if i < len(chunks) - 2 else [],
        ):
            error = opens(b"".join([head, *changed]), tmp_path)
            assert isinstance(error, CheckFailed), (i, len(changed))
    assert isinstance(opens(b"".join([*other[:1], *chunks]), tmp_path), CheckFailed)


def test_the_last_chunk_is_known_by_its_tag(encrypted):
    """Not only by the sizes in the manifest."""
    header = encryption._header(encrypted[:HEADER], "enc")
    cipher, _ = encryption._derive(KEY, header)
    chunks = cut(encrypted)[1:]
    for count in range(len(chunks) + 1):
        file = io.BytesIO(b"".join(chunks[:count]))
        found = encryption._authenticated(file, cipher, header, "enc")
        if count == len(chunks):
            assert len(list(found)) == count
        else:
            with pytest.raises(CheckFailed, match=f"chunk {max(count, 1)} is not"):
                list(found)


@FUZZ
@given(data=st.data())
def test_no_damage_is_accepted(data, encrypted, folder, tmp_path):
    start, stop = sorted(data.draw(st.integers(0, len(encrypted))) for _ in range(2))
    kind = data.draw(st.sampled_from(["cut", "double", "insert", "replace", "random"]))
    changed = {
        "cut": lambda: encrypted[:start] + encrypted[stop:],
        "double": lambda: encrypted[:stop] + encrypted[start:],
        "insert": lambda: (
            encrypted[:start] + data.draw(st.binary()) + encrypted[start:]
        ),
        "replace": lambda: (
            encrypted[:start] + data.draw(st.binary(max_size=300)) + encrypted[stop:]
        ),
        "random": lambda: encrypted[:16] + data.draw(st.binary(max_size=300)),
    }[kind]()
    found = opens(changed, tmp_path)
    if changed == encrypted:
        assert found == tree(folder)
    else:
        assert isinstance(found, GpuzooError)


@pytest.mark.parametrize("secret", [KEY, WORD], ids=["key", "passphrase"])
def test_another_secret_is_refused(secret, folder, tmp_path):
    encrypt(folder, tmp_path / "enc", secret)
    content = (tmp_path / "enc").read_bytes()
    wrong = Secret(b"Correct horse" if secret is WORD else b"\0" * 32, secret is WORD)
    error = opens(content, tmp_path, wrong)
    assert isinstance(error, CheckFailed) and "wrong" in str(error)
    other = WORD if secret is KEY else KEY
    error = opens(content, tmp_path, other)
    assert not isinstance(error, CheckFailed) and "was encrypted with a" in str(error)


def test_the_cost_in_the_header_is_limited_before_it_is_paid(
    folder, tmp_path, monkeypatch
):
    from cryptography.hazmat.primitives.kdf import scrypt

    encrypt(folder, tmp_path / "enc", WORD)
    content = bytearray((tmp_path / "enc").read_bytes())
    assert content[18] == 17

    def never(*_, **__):
        raise AssertionError("derived")

    monkeypatch.setattr(scrypt, "Scrypt", never)
    for log_n in (0, 19, 20, 30, 63, 64, 255):
        content[18] = log_n
        error = opens(bytes(content), tmp_path, WORD)
        assert f"n = 2^{log_n}" in str(error) and "at most 2^18" in str(error)


# --- the commands -------------------------------------------------------------------


@pytest.fixture
def word(tmp_path):
    path = tmp_path / "word"
    path.write_text("correct horse\n")
    path.chmod(0o600)
    return path


def test_commands_and_exit_codes(folder, word, cli_here, tmp_path):
    keys.new_key(tmp_path / "key", keys.ENCRYPTION)
    for name, words in (
        ("one", ("--passphrase-file", word)),
        ("two", ("--key", "key")),
    ):
        done = cli_here("encrypt", "folder", "--out", f"{name}.enc", *words)
        assert done.returncode == 0 and done.json["files"] == 4, done.stderr
        done = cli_here("decrypt", f"{name}.enc", "--out", name, *words)
        assert done.returncode == 0 and tree(tmp_path / name) == tree(folder)
        for secret in ("correct horse", (tmp_path / "key").read_text()[30:]):
            assert secret.strip() not in done.stdout + done.stderr
    before = tree(tmp_path)
    one = "decrypt", "one.enc", "--out", "new"
    (tmp_path / "wrong").write_text("wrong horse")
    (tmp_path / "wrong").chmod(0o600)
    one_line(cli_here(*one, "--passphrase-file", "wrong"), 1, "wrong passphrase")
    one_line(cli_here(*one, "--key", "key"), 2, "was encrypted with a passphrase")
    one_line(cli_here("decrypt", "two.enc", "--out", "new"), 2, "use --key")
    one_line(
        cli_here(*one, "--key", "key", "--passphrase-file", word), 2, "give one of them"
    )
    one_line(cli_here(*one), 2, "no terminal to ask for the passphrase")
    one_line(
        cli_here("decrypt", "folder/x", "--out", "new"), 2, "is not a file that gpuzoo"
    )
    one_line(cli_here("encrypt", "folder", "--out", "one", "--key", "key"), 2, "exists")
    shutil.copy(tmp_path / "key", folder)
    inside = cli_here("encrypt", "folder", "--out", "new", "--key", "folder/key")
    one_line(inside, 2, "is part of what is encrypted")
    (folder / "key").unlink()
    (tmp_path / "wrong").chmod(0o644)
    one_line(cli_here(*one, "--passphrase-file", "wrong"), 2, "expected 0600")
    (tmp_path / "wrong").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", ["sign", "encrypt", "decrypt"])
def test_a_passphrase_on_the_command_line_is_refused_and_not_printed(verb, cli_here):
    for words in (("--passphrase", "hunter2"), ("--password=hunter2",)):
        done = cli_here(verb, "x", "--out", "y", *words)
        one_line(done, 2, "other users can read a command line")
        assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\n", "empty"), (b"short", "too short"), (b"a\nb" * 9, "lines"),
     (b"\xff" * 9, "UTF-8"), (b"x" * 20_000, "larger")],
)  # fmt: skip
def test_passphrases_that_are_refused(content, message, word):
    word.write_bytes(content)
    with pytest.raises(GpuzooError, match=message):
        keys.passphrase(str(word), new=True)


def test_a_passphrase_is_the_same_however_it_is_stored(word):
    for content in ("e\u0301 correct\n", "\u00e9 correct\r\n", "\u00e9 correct"):
        word.write_bytes(content.encode())
        assert keys.passphrase(str(word)) == "\u00e9 correct".encode()
    assert "correct" not in repr(keys.secret(str(word), None))


def typed(words, answers, tmp_path) -> tuple[int, str]:
    """Run a command on a terminal; return its exit code and what is seen there."""
    code = (
        "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from gpuzoo.cli.app import main; main()"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, 0x5414, struct.pack("4H", 40, 200, 0, 0))  # TIOCSWINSZ
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], cwd=tmp_path,
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment(tmp_path),
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen, answers = b"", list(answers)
    with contextlib.suppress(OSError):  # the terminal is closed
        while block := os.read(ours, 1000):
            seen += block
            if answers and seen.endswith((b"passphrase: ", b"again: ")):
                os.write(ours, answers.pop(0).encode() + b"\n")
    os.close(ours)
    return process.wait(timeout=60), seen.decode()


def test_a_passphrase_is_asked_for_twice_and_not_shown(folder, tmp_path):
    words = "encrypt", "folder", "--out", "enc"
    code, seen = typed(words, ["correct horse", "correct horsf"], tmp_path)
    assert code == 2 and "the two passphrases differ" in seen
    assert not (tmp_path / "enc").exists()
    code, seen = typed(words, ["correct horse"] * 2, tmp_path)
    assert code == 0 and "horse" not in seen, seen
    code, seen = typed(("decrypt", "enc", "--out", "out"), ["correct horse"], tmp_path)
    assert code == 0 and "horse" not in seen and "again" not in seen, seen
    assert tree(tmp_path / "out") == tree(folder)
    code, seen = typed(("decrypt", "enc", "--out", "out2"), ["correct hors"], tmp_path)
    assert code == 1 and "wrong passphrase" in seen
    decrypt(tmp_path / "enc", tmp_path / "out3", WORD)


def test_a_full_disk_or_a_signal_leaves_nothing(folder, cli, tmp_path):
    (folder / "large").write_bytes(os.urandom(1_000_000))
    keys.new_key(tmp_path / "key", keys.ENCRYPTION)
    encrypts = "encrypt", "folder", "--out", "enc", "--key", "key"
    decrypts = "decrypt", "enc", "--out", "out", "--key", "key"
    kills = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it
        # and a shell ignores it for what it starts in the background
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gpuzoo.cli.app import main\n"
        "from gpuzoo.deploy import contents, encryption\n"
        "def kill(*_): os.kill(os.getpid(), getattr(signal, os.environ['KILL']))\n"
        "contents.Plaintext.end = kill\n"
        "if sys.argv[1] == 'encrypt': encryption._numbered = kill\n"
        "main()"
    )
    for words, names in (
        (encrypts, {"folder", "key"}),
        (decrypts, {"folder", "key", "enc"}),
    ):
        one_line(cli(*words, file_bytes=900_000), 2, "cannot be written")
        for name in ("SIGTERM", "SIGHUP", "SIGINT"):
            done = cli(*words, program=("-c", kills), env={"KILL": name})
            assert done.returncode == 130, done.stderr
        assert {path.name for path in tmp_path.iterdir()} - {"cache"} == names
        assert cli(*words).returncode == 0
