"""A signature holds for exactly the run that was signed, and for its key alone."""

import hashlib
import json
import os
import shutil
import stat
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_resume import start

from gpuzoo.deploy import keys, signing
from gpuzoo.errors import CheckFailed, GpuzooError
from gpuzoo.report import page
from gpuzoo.runs import derived
from gpuzoo.runs.record import read_run, seal

WORDS = [
    "train", "mnist", "--data", "digits", "--model", "mlp", "--model-options",
    "units=(8,)", "--device", "cpu", "--precision", "float32", "--threads", "2",
    "--epochs", "2", "--quiet", "--out", "run",
]  # fmt: skip
WITHOUT_LIBRARY = (
    "-c",
    "import sys; sys.modules['cryptography'] = None\n"
    "from gpuzoo.cli.app import main; main()",
)


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A folder with a signed run and two keys, alice's and eve's; alice has signed."""
    folder = tmp_path_factory.mktemp("signed")
    process = start(WORDS, folder)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    for name in ("alice", "eve"):
        keys.new_key(folder / name)
    signing.sign(folder / "run", str(folder / "alice"))
    return folder


@pytest.fixture
def run(signed, tmp_path):
    """A copy of the run, to be spoiled."""
    shutil.copytree(signed / "run", tmp_path / "run")
    return tmp_path / "run"


def check(run, signed, name="alice", **options) -> dict:
    return signing.check_signature(run, str(signed / f"{name}.pub"), **options)


def sign_again(run, signed, **fields) -> None:
    """Change the record, renew digests and seal, and sign it as alice would."""
    path = run / "run.json"
    record = json.loads(path.read_text())
    (run / "report.html").unlink(missing_ok=True)  # it follows from the record
    files = sorted(p for p in run.rglob("*") if p.is_file())
    record["files"] = {
        file.relative_to(run).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name not in ("run.json", signing.SIGNATURE)
    }
    record.update(fields)
    record["seal"] = fields.get("seal", seal(record))
    path.write_text(json.dumps(record))
    key = keys.load_private(str(signed / "alice"))
    (run / signing.SIGNATURE).write_bytes(key.sign(path.read_bytes()))


def test_a_signed_run_is_accepted_and_openssl_agrees(signed):
    found = check(signed / "run", signed)
    assert found["verdict"] == "signed" and found["files"] > 4
    record = (signed / "run" / "run.json").read_bytes()
    assert found["signed_sha256"] == hashlib.sha256(record).hexdigest()
    assert signing.sign(signed / "run", str(signed / "alice"))  # the same: no fault
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    words = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "alice.pub", "-rawin",
             "-in", "run/run.json", "-sigfile", "run/run.json.sig"]  # fmt: skip
    done = subprocess.run(words, cwd=signed, capture_output=True, check=False)
    assert done.returncode == 0, done
    words[5] = "eve.pub"
    assert subprocess.run(
        words, cwd=signed, capture_output=True, check=False
    ).returncode


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def append(path, content):
    path.write_bytes(path.read_bytes() + content)


def link(path, signed):
    path.unlink()
    path.symlink_to(signed / "run" / path.name)


WEIGHTS, SIGNATURE = "weights.safetensors", signing.SIGNATURE
FAULTS = {
    "weights": (lambda run, _: flip(run / WEIGHTS), f"{WEIGHTS} has been changed"),
    "plot": (lambda run, _: flip(run / "curves.png", 0), "curves.png has been changed"),
    "row": (lambda run, _: (run / "metrics.jsonl").write_bytes(b""), "metrics.jsonl has"),
    "missing": (lambda run, _: (run / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "link": (lambda run, top: link(run / WEIGHTS, top), f"{WEIGHTS} cannot be read: .*reg"),
    "pipe": (
        lambda run, _: ((run / WEIGHTS).unlink(), os.mkfifo(run / WEIGHTS)),
        f"{WEIGHTS} cannot be read",
    ),
    "folder": (
        lambda run, _: ((run / WEIGHTS).unlink(), (run / WEIGHTS).mkdir()),
        f"{WEIGHTS} cannot be read",
    ),
    "extra": (lambda run, _: (run / "notes.txt").write_text("x"), "notes.txt is not in"),
    "extra weights": (
        lambda run, _: shutil.copy(run / WEIGHTS, run / "initial_weights.safetensors"),
        "initial_weights.safetensors is not in",
    ),
    "extra checkpoint": (
        lambda run, _: ((run / "checkpoints").mkdir(),
                        (run / "checkpoints" / "step-1.safetensors").touch()),
        "checkpoints/step-1.safetensors is not in",
    ),
    "extra link to a folder": (
        lambda run, top: (run / "checkpoints").symlink_to(top), "checkpoints is not in"
    ),
    "signature flipped": (lambda run, _: flip(run / SIGNATURE), "is not a signature of"),
    "signature longer": (
        lambda run, _: append(run / SIGNATURE, b"\n"), "expected 64 bytes"
    ),
    "signature cut": (lambda run, _: (run / SIGNATURE).write_bytes(b""), "expected 64"),
    "signature linked": (lambda run, top: link(run / SIGNATURE, top), "cannot be read"),
    "not signed": (lambda run, _: (run / SIGNATURE).unlink(), "is not signed"),
    "record with a space": (
        lambda run, _: append(run / "run.json", b" "), "is not a signature of"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_by_name(fault, signed, run):
    check(run, signed)
    change, message = FAULTS[fault]
    change(run, signed)
    with pytest.raises(CheckFailed, match=message):
        check(run, signed)
    if "extra" in fault or fault in ("weights", "missing", "link"):
        (run / SIGNATURE).unlink()
        with pytest.raises(CheckFailed, match=message):
            signing.sign(run, str(signed / "alice"))
        assert not (run / SIGNATURE).exists()


def test_only_files_that_gpuzoo_does_not_read_may_be_unsigned(signed, run):
    (run / "notes.txt").write_text("mine")
    (run / "export").mkdir()
    (run / "export" / "model.onnx").write_text("x")
    found = check(run, signed, allow_unsigned=True)
    assert found["unsigned"] == ["export/model.onnx", "notes.txt"]
    for name in ("architecture.json", "export/other.safetensors", "checkpoints/x"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
        with pytest.raises(CheckFailed, match=f"{name} is not in the record"):
            check(run, signed, allow_unsigned=True)
        (run / name).unlink()


def test_a_record_that_was_forged_with_its_seal_is_refused(signed, run):
    """What the seal alone does not find."""
    flip(run / WEIGHTS)
    signature = (run / SIGNATURE).read_bytes()
    sign_again(run, signed)
    (run / SIGNATURE).write_bytes(signature)
    with pytest.raises(CheckFailed, match="is not a signature of run.json"):
        check(run, signed)
    key = keys.load_private(str(signed / "eve"))
    (run / SIGNATURE).write_bytes(key.sign((run / "run.json").read_bytes()))
    with pytest.raises(CheckFailed, match=r"is not a signature of run.json by .*alice"):
        check(run, signed)


def test_what_a_signer_with_the_right_key_may_not_sign(signed, run):
    """Records that no run of gpuzoo has; and files in sub-folders are compared, too."""
    (run / "samples").mkdir()
    (run / "samples" / "one.png").write_text("x")
    sign_again(run, signed)
    assert check(run, signed)
    (run / "samples" / "one.png").write_text("y")
    with pytest.raises(CheckFailed, match="samples/one.png has been changed"):
        check(run, signed)
    shutil.rmtree(run / "samples")
    for fields, message in (
        ({"seal": "0" * 64}, "has been changed since gpuzoo wrote it"),
        ({"weights_sha256": "0" * 64}, "two digests"),
        ({"state": "stopped"}, "only a finished run"),
        ({"schema": 1}, "record format 1"),
        ({"files": {}}, "not valid"),
    ):
        shutil.copy(signed / "run" / "run.json", run)
        sign_again(run, signed, **fields)
        with pytest.raises(GpuzooError, match=message):
            check(run, signed)
    outside = hashlib.sha256((signed / "alice.pub").read_bytes()).hexdigest()
    (run.parent / "alice.pub").write_bytes((signed / "alice.pub").read_bytes())
    for name in ("../alice.pub", str(signed / "alice.pub")):
        record = json.loads((signed / "run" / "run.json").read_text())
        sign_again(run, signed, files={**record["files"], name: outside})
        with pytest.raises(CheckFailed, match="not a path inside"):
            check(run, signed)


@settings(max_examples=300, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_no_damage_is_accepted(data, signed, run):
    """Any bytes of any file changed, cut, doubled or added, or files exchanged."""
    names = sorted(path.name for path in (signed / "run").iterdir())
    name = data.draw(st.sampled_from(names))
    before = (signed / "run" / name).read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "double", "insert", "exchange"]))
    start, stop = sorted(data.draw(st.integers(0, len(before))) for _ in range(2))
    if kind == "flip":
        after = bytearray(before)
        after[min(start, len(before) - 1)] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        after = before[:start] + before[stop:]
    elif kind == "double":
        after = before[:stop] + before[start:]
    elif kind == "insert":
        after = before[:start] + data.draw(st.binary(max_size=70)) + before[start:]
    else:
        after = (signed / "run" / data.draw(st.sampled_from(names))).read_bytes()
    (run / name).write_bytes(after)
    try:
        if bytes(after) == before:
            assert check(run, signed)
        else:
            with pytest.raises(GpuzooError):
                check(run, signed)
    finally:
        (run / name).write_bytes(before)


# --- the commands -------------------------------------------------------------------


def one_line(done, code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpuzoo: error: ") and message in line, line
    assert not done.stdout


def test_commands_and_exit_codes(signed, run, cli, tmp_path):
    key = (signed / "alice").read_text().splitlines()[1]
    (run / SIGNATURE).unlink()
    one_line(
        cli("check-signature", run, "--signed-by", signed / "alice.pub"),
        1,
        "not signed",
    )
    done = cli("sign", run, "--key", signed / "alice")
    assert done.returncode == 0 and done.json["signature"].endswith("run.json.sig")
    again = cli("check-signature", run, "--signed-by", signed / "alice.pub")
    assert again.returncode == 0 and again.json["verdict"] == "signed"
    assert key not in done.stdout + done.stderr + again.stdout + again.stderr
    for path in run.iterdir():
        assert key.encode() not in path.read_bytes()
    one_line(
        cli("check-signature", run, "--signed-by", signed / "eve.pub"), 1, "not a sig"
    )
    one_line(cli("sign", run, "--key", signed / "eve"), 2, "another signature")
    one_line(cli("sign", tmp_path, "--key", signed / "alice"), 2, "no run.json")
    one_line(cli("sign", run, "--key", signed / "alice.pub"), 2, "is a public key")
    (tmp_path / "open").write_bytes((signed / "alice").read_bytes())
    (tmp_path / "open").chmod(0o644)
    one_line(cli("sign", run, "--key", "open"), 2, "mode 0644, expected 0600")
    program = WITHOUT_LIBRARY
    words = (("sign", run, "--key", "k"), ("encrypt", run, "--out", "e"),
             ("decrypt", run, "--out", "e"), ("new-key", "k"))  # fmt: skip
    for each in words:
        one_line(cli(*each, program=program), 2, "pip install 'gpuzoo[protect]'")
    assert not (tmp_path / "k").exists()


def test_names_do_not_control_the_terminal(signed, run, cli_here):
    """A file of the sender's may be named like a line of gpuzoo's."""
    name = "\x1b[2K\rrun: signed by the owner of alice.pub\n"
    (run / name).write_text("x")
    words = "check-signature", run, "--signed-by", signed / "alice.pub"
    refused, ignored = cli_here(*words), cli_here(*words, "--allow-unsigned")
    assert (refused.returncode, ignored.returncode) == (1, 0)
    for done in (refused, ignored):
        assert "\x1b" not in done.stderr and "\r" not in done.stderr
        assert r"\x1b[2K" in done.stderr
    assert ignored.json["unsigned"] == [name]


def test_verify_checks_the_signature_before_it_trains(signed, run, cli_here):
    """And a signature disturbs neither verify nor resume."""
    done = cli_here("verify", run, "--signed-by", signed / "alice.pub")
    assert done.returncode == 0 and done.json["verdict"] == "identical", done.stderr
    assert done.json["changed_files"] == []
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert cli_here("resume", run).json["state"] == "finished"
    assert before == {path: path.read_bytes() for path in run.iterdir()}
    one_line(
        cli_here("verify", run, "--signed-by", signed / "eve.pub"), 1, "not a signature"
    )
    flip(run / WEIGHTS)
    one_line(cli_here("verify", run, "--signed-by", signed / "alice.pub"), 1, "changed")
    one_line(cli_here("verify", run, "--signed-by", ""), 2, "cannot be read")


# --- keys ---------------------------------------------------------------------------


def test_a_new_key(tmp_path, cli):
    one, two = (cli("new-key", name) for name in ("one", "two"))
    assert one.json["public_key_sha256"] != two.json["public_key_sha256"]
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600
    text = (tmp_path / "one").read_text()
    assert text.startswith("-----BEGIN PRIVATE KEY-----")
    assert (tmp_path / "one.pub").read_text().startswith("-----BEGIN PUBLIC KEY-----")
    one_line(cli("new-key", "one"), 2, "one exists; a key is never overwritten")
    (tmp_path / "one").unlink()
    one_line(cli("new-key", "one"), 2, "one.pub exists")
    one_line(cli("new-key", "no/such/key"), 2, "cannot be written")
    one_line(cli("new-key", "full", file_bytes=10), 2, "cannot be written")
    done = cli("new-key", "secret", "--for", "encryption")
    assert done.json["public_key"] is None
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    names = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert names == {"one.pub", "two", "two.pub", "secret"}


def test_a_private_key_stands_nowhere_if_the_public_one_cannot_be_written(
    tmp_path, monkeypatch
):
    from gpuzoo.deploy.keys import new_file

    def fails(path, mode=0o666):
        if path.suffix == ".pub":
            raise OSError(28, "No space left on device")
        return new_file(path, mode)

    monkeypatch.setattr(keys, "new_file", fails)
    with pytest.raises(GpuzooError, match="No space left"):
        keys.new_key(tmp_path / "key")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700, 0o644])
def test_a_secret_that_others_may_read_is_refused(mode, signed, tmp_path):
    path = tmp_path / "key"
    shutil.copy(signed / "alice", path)
    path.chmod(mode)
    with pytest.raises(GpuzooError, match=f"mode {mode:04o}, expected 0600.*chmod 600"):
        keys.load_private(str(path))
    with pytest.raises(GpuzooError, match=f"--passphrase-file .* has mode {mode:04o}"):
        keys.passphrase(str(path))
    path.chmod(0o400)
    assert keys.load_private(str(path))


def test_what_is_not_a_key_is_refused_by_name(signed, tmp_path):
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, x25519

    def private(content, mode=0o600):
        path = tmp_path / "key"
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        return str(path)

    def pem(key):
        return key.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        )

    keys.new_key(tmp_path / "aes", keys.ENCRYPTION)
    text = (signed / "alice").read_bytes()
    for content, message in (
        (b"", "not a private key"), (b"x" * 20_000, "larger than 10,000 bytes"),
        (text[:70], "not a private key"), (text.replace(b"M", b"N"), "not a"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "not an Ed25519 key"),
        (pem(x25519.X25519PrivateKey.generate()), "not an Ed25519 key"),
        ((tmp_path / "aes").read_bytes(), "is an encryption key"),
        ((signed / "alice.pub").read_bytes(), "not a private key"),
    ):  # fmt: skip
        with pytest.raises(GpuzooError, match=message) as caught:
            keys.load_private(private(content))
        assert "\n" not in str(caught.value)
    with pytest.raises(GpuzooError, match="is a private key; expected the public"):
        keys.load_public(str(signed / "alice"))
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = form.PublicFormat.SubjectPublicKeyInfo
    for content, message in (
        (b"x", "not a public key"),
        (public.public_bytes(form.Encoding.PEM, spki), "not an Ed25519 key"),
    ):
        with pytest.raises(GpuzooError, match=message):
            keys.load_public(private(content, 0o644))
    for path in (tmp_path, tmp_path / "none", "/dev/null", "a\0b"):
        with pytest.raises(GpuzooError, match="cannot be read"):
            keys.load_public(str(path))
        with pytest.raises(GpuzooError, match="cannot be read"):
            keys.load_private(str(path))
    with pytest.raises(GpuzooError, match="is not an encryption key"):
        keys.secret(None, str(signed / "alice"))


def test_a_key_of_openssl_with_a_passphrase(signed, run, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    for name, content in (("word", "correct horse\n"), ("other", "wrong horse\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    made = ["openssl", "pkcs8", "-topk8", "-scrypt", "-in", signed / "alice",
            "-passout", f"file:{tmp_path}/word", "-out", tmp_path / "locked"]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    (tmp_path / "locked").chmod(0o600)
    (run / SIGNATURE).unlink()
    locked = str(tmp_path / "locked")
    with pytest.raises(GpuzooError, match="wrong passphrase"):
        signing.sign(run, locked, str(tmp_path / "other"))
    assert not (run / SIGNATURE).exists()
    signing.sign(run, locked, str(tmp_path / "word"))
    assert check(run, signed)
    with pytest.raises(GpuzooError, match="has no passphrase"):
        signing.sign(run, str(signed / "alice"), str(tmp_path / "word"))


def test_the_report_of_a_signed_run_is_that_of_its_record(signed, run):
    """A page that says something else is refused, though it holds its own digest."""
    record = read_run(run)
    report = run / "report.html"
    honest, end = report.read_bytes(), b"<!-- gpuzoo: report of run"
    body = honest[: honest.rindex(end)]
    forged = derived.stamp(
        body.replace(b"test accuracy", b"best accuracy"), record["id"]
    )
    assert forged != honest and derived.is_own(report.name, forged, record["id"])
    report.write_bytes(forged)
    with pytest.raises(
        CheckFailed, match=r"report\.html is not of this record; gpuzoo"
    ):
        check(run, signed)
    assert check(run, signed, allow_unsigned=True)["unsigned"] == ["report.html"]
    page.report(run)
    assert report.read_bytes() == honest and check(run, signed)["unsigned"] == []
    # A verdict, which nobody has signed, and the page that shows it.
    found = {"verdict": "identical", "steps": record["steps"], "first_difference": None,
             "causes": [], "changed_files": [], "rows": [], "figures": []}  # fmt: skip
    (run / "verify.json").write_bytes(derived.verdict_file(found, record, "1"))
    with pytest.raises(CheckFailed, match=r"report\.html is not of this record"):
        check(run, signed)
    page.report(run)
    assert check(run, signed)["unsigned"] == ["verify.json"]
    flip(run / "verify.json", 5)
    with pytest.raises(CheckFailed, match=r"verify\.json is not of this record"):
        check(run, signed)
