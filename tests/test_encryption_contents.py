"""What is packed and unpacked: names, manifests, files that are in the way."""

import contextlib
import itertools
import os

import pytest
import sealing
from hypothesis import given
from hypothesis import strategies as st
from sealing import FUZZ, KEY, NAMES, opens, packed, seal, tree

from gpuzoo.deploy import contents, encryption
from gpuzoo.deploy.encryption import decrypt, encrypt
from gpuzoo.errors import CheckFailed, GpuzooError

small, folder = sealing.small, sealing.folder


# --- what somebody with the key may send ---------------------------------------------

FILE = {"kind": "file", "size": 1}
BAD_NAMES = [
    "", ".", "..", "../x", "/etc/x", "/x", "a/../x", "a//x", "./x", "a/", "x\0", "a/./x",
    "../" * 20 + "tmp/x", "\ud800", "x" * 300, 7, None, ["x"],
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_that_leads_out_is_refused(name, tmp_path):
    for folders, files in (
        (["a"], [[name, 1]]),
        (["a", name], []),
        ([name], [["y", 1]]),
    ):
        manifest = {"kind": "folder", "folders": folders, "files": files}
        rest = b"x" * len(files)
        error = opens(seal(packed(manifest, rest), tmp_path), tmp_path)
        known = name == "x" * 300  # only the file system knows the longest name
        assert ("name too long" if known else "manifest is not valid") in str(error)


def folder_of(*files, folders=(), **more) -> dict:
    return {"kind": "folder", "folders": list(folders), "files": list(files), **more}


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (b"\0" * 7, "fewer bytes"),
        (packed(b""), "not valid"),
        (packed(b"{"), "not valid"),
        (packed(b"\xff"), "not valid"),
        (packed(b"[" * 100_000), "not valid"),
        (packed(b'{"kind":"file","kind":"file","size":0}'), "twice"),
        (packed(b'{"kind":"file","size":' + b"9" * 5000 + b"}"), "not valid"),
        (packed([]), "not an object"),
        (packed({"kind": "file"}), "neither"),
        (packed({"kind": "link", "size": 0}), "neither"),
        (packed({**FILE, "mode": 0o4777}, b"x"), "neither"),
        (packed(FILE), "another size"),
        (packed(FILE, b"xx"), "another size"),
        (packed({"kind": "file", "size": -1}), "not a number of bytes"),
        (packed({"kind": "file", "size": True}, b"x"), "not a number of bytes"),
        (packed({"kind": "file", "size": 1.0}, b"x"), "not a number of bytes"),
        ((1 << 40).to_bytes(8) + b"{}", "too long"),
        ((50).to_bytes(8) + b"{}", "too long"),
        (packed(folder_of(["a", 0], ["a", 0])), "twice"),
        (packed(folder_of(["a", 0], folders=["a"])), "twice"),
        (packed(folder_of(folders=["a", "a"])), "twice"),
        (packed(folder_of(["a", 0], ["a/b", 0])), "is missing"),
        (packed(folder_of(folders=["a/b", "a"])), "is missing"),
        (packed(folder_of(["a", 5], ["b", -4]), b"x"), "not a number of bytes"),
        (packed(folder_of(["a", 1 << 60])), "another size"),
        (packed(folder_of(["a"])), "not a pair"),
        (packed(folder_of("ab")), "not a pair"),
        (packed(folder_of(links=[])), "neither"),
        (packed({"kind": "folder", "folders": "a", "files": []}), "no lists"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_valid_is_refused(plain, message, tmp_path):
    error = opens(seal(plain, tmp_path), tmp_path)
    assert isinstance(error, CheckFailed) and message in str(error), error


def test_bytes_after_the_last_chunk_of_a_valid_content(small, tmp_path, monkeypatch):
    """A last chunk that is empty, or of which the manifest knows nothing."""
    size = next(
        n for n in range(100, 164) if not len(packed(FILE | {"size": n})) + n & 63
    )
    plain = packed(FILE | {"size": size}, b"x" * size)
    assert opens(seal(plain, tmp_path), tmp_path) == b"x" * size
    folder = packed(folder_of(["a", size - 27]), b"x" * (size - 27))
    assert len(folder) == len(plain)
    for content, end in itertools.product((plain, folder), (b"", b"x")):
        more = seal(content, tmp_path, end=end)
        assert isinstance(opens(more, tmp_path), CheckFailed)
        with monkeypatch.context() as patch:  # as if it had grown after it was measured
            patch.setattr(encryption, "_plain_size", lambda *_: len(plain))
            error = opens(more, tmp_path)
        assert isinstance(error, CheckFailed) and "more bytes" in str(error), error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES
    | st.sampled_from(["kind", "file", "folder", "..", "/x", "a", "a/b"]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@FUZZ
@given(
    kind=st.sampled_from(["file", "folder"]),
    folders=st.lists(
        st.sampled_from(["a", "a/b", "..", "b", "", "/a"]) | JSON, max_size=3
    ),
    files=st.lists(
        st.tuples(
            st.sampled_from(["a", "a/b", "../a", "b/c", "a/b/c", "x"]) | JSON,
            st.integers(0, 3) | JSON,
        ),
        max_size=3,
    ),
    rest=st.binary(max_size=9),
)
def test_any_manifest_is_unpacked_inside_or_refused(
    kind, folders, files, rest, tmp_path
):
    manifest = {"kind": kind, "folders": folders, "files": files}
    if kind == "file":
        manifest = {"kind": kind, "size": files[0][1] if files else len(rest)}
    found = opens(seal(packed(manifest, rest), tmp_path), tmp_path)
    if isinstance(found, dict):  # written: exactly what it says; `opens` saw no other
        assert {name for name, _ in files} | set(folders) == set(found)
        assert b"".join(found[name] for name, _ in files) == rest


# --- files that are in the way, and those that cannot be encrypted -------------------


def test_nothing_is_overwritten(folder, tmp_path):
    encrypt(folder, tmp_path / "enc", KEY)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "none").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    before = tree(tmp_path)
    for name in ("file", "none", "link", "folder", "enc", "no/such"):
        for action in (encrypt, decrypt):
            with pytest.raises(GpuzooError, match="exists|no such folder"):
                action(tmp_path / "enc", tmp_path / name, KEY)
    assert tree(tmp_path) == before and not (tmp_path / "nowhere").exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten(
    folder, tmp_path, monkeypatch
):
    """Also where there are no hard links."""
    encrypt(folder, tmp_path / "enc", KEY)
    encrypt(folder / "x", tmp_path / "enc-file", KEY)
    end = contents.Plaintext.end

    def late(plain):
        end(plain)
        (tmp_path / "out").write_text("mine")

    monkeypatch.setattr(contents.Plaintext, "end", late)

    def no_links(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    for name in ("enc", "enc-file", "enc-file"):
        with pytest.raises(GpuzooError, match="--out .* cannot be written"):
            decrypt(tmp_path / name, tmp_path / "out", KEY)
        assert (tmp_path / "out").read_text() == "mine"
        (tmp_path / "out").unlink()
        monkeypatch.setattr(os, "link", no_links)

    def late_folder(plain):
        (tmp_path / "out").mkdir()

    monkeypatch.setattr(contents.Plaintext, "end", late_folder)
    with pytest.raises(GpuzooError, match="--out .* cannot be written: it exists"):
        decrypt(tmp_path / "enc", tmp_path / "out", KEY)
    (tmp_path / "out").rmdir()
    monkeypatch.setattr(contents.Plaintext, "end", end)
    decrypt(tmp_path / "enc-file", tmp_path / "out", KEY)
    assert (tmp_path / "out").read_bytes() == (folder / "x").read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"folder", "enc", "enc-file", "out"}


def test_what_cannot_be_encrypted_is_refused_by_name(folder, tmp_path):
    for make, message in (
        (lambda path: path.symlink_to(tmp_path), "is a link"),
        (lambda path: path.symlink_to("x"), "is a link"),
        (os.mkfifo, "is a link or a special file"),
    ):
        make(folder / "a" / "odd")
        with pytest.raises(GpuzooError, match=f"a/odd {message}"):
            encrypt(folder, tmp_path / "enc", KEY)
        (folder / "a" / "odd").unlink()
    odd = os.fsencode(folder) + b"/\xff"
    with open(odd, "w"):
        pass
    with pytest.raises(GpuzooError, match="not UTF-8"):
        encrypt(folder, tmp_path / "enc", KEY)
    os.unlink(odd)
    with pytest.raises(GpuzooError, match="inside of the folder"):
        encrypt(folder, folder / "a" / "enc", KEY)
    for path in (tmp_path / "none", "/dev/null", "a\0b"):
        with pytest.raises(GpuzooError, match="cannot be read"):
            encrypt(path, tmp_path / "enc", KEY)
        with pytest.raises(GpuzooError, match="cannot be read"):
            decrypt(path, tmp_path / "enc", KEY)
    assert {path.name for path in tmp_path.iterdir()} == {"folder"}


def test_a_file_that_changes_while_it_is_read(folder, tmp_path, monkeypatch):
    blocks = contents.Source.blocks
    for change in (
        lambda: (folder / "x").write_text("longer" * 100),
        lambda: (folder / "x").write_text(""),
        lambda: (
            (folder / "x").unlink(),
            (folder / "x").symlink_to(folder / ".hidden"),
        ),
    ):

        def changing(source, change=change):
            change()
            return blocks(source)

        (folder / "x").unlink()
        (folder / "x").write_text("secret")
        monkeypatch.setattr(contents.Source, "blocks", changing)
        with pytest.raises(GpuzooError, match=r"folder/x .*(changed|cannot be read)"):
            encrypt(folder, tmp_path / "enc", KEY)
        assert {path.name for path in tmp_path.iterdir()} == {"folder"}


def test_deep_folders(tmp_path, monkeypatch):
    """Deeper than Python calls functions."""
    monkeypatch.chdir(tmp_path)
    depth = 1100
    (tmp_path / "folder").mkdir()
    deep = "folder" + "/d" * depth
    for end in range(1, depth + 1):
        os.mkdir("folder" + "/d" * end)
    try:
        encrypt(tmp_path / "folder", tmp_path / "enc", KEY)
        decrypt(tmp_path / "enc", tmp_path / "out", KEY)
        assert os.path.isdir(deep.replace("folder", "out"))
    finally:  # pytest cannot remove them
        for name in (deep, deep.replace("folder", "out")):
            with contextlib.suppress(FileNotFoundError):
                remove_upwards(name)


def remove_upwards(path: str) -> None:
    while path:
        os.rmdir(path)
        path = path.rpartition("/")[0]
