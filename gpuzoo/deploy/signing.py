"""Ed25519 signatures of finished runs.

`run.json.sig` is the signature (64 bytes) of the bytes of `run.json`, which has the
digest of every file of the run.
"""

import functools
import hashlib
import os
import pathlib

from gpuzoo.deploy import keys
from gpuzoo.errors import CheckFailed, GpuzooError
from gpuzoo.files import Folder, expand, open_inside, read_inside
from gpuzoo.home import redact
from gpuzoo.runs import derived
from gpuzoo.runs.folder import SIGNATURE
from gpuzoo.runs.record import checked, no_run, seal

_SIZE = 64
_LARGEST_RECORD = 100_000_000
# What gpuzoo itself reads from a run folder: a file of these names is never ignored.
_READ = ("architecture.json", "metrics.jsonl", "digests.jsonl", "checkpoints")


def sign(run: str | pathlib.Path, key: str, passphrase_file: str | None = None) -> dict:
    """Sign a finished run, after checking it against its record.

    Args:
        run: the run folder; `run.json.sig` is written into it.
        key: file of the private key, mode 0600.
        passphrase_file: of an encrypted key, mode 0600; None: ask on the terminal.

    Returns:
        `run_dir`, `signature` (the file), `signed_sha256` (of run.json) and
        `public_key_sha256`.

    Raises:
        CheckFailed: the run has been changed, or has files that its record does not
            list.
        GpuzooError: it is not a finished run, has another signature, or the key cannot
            be used.
    """
    path, private = expand(run), keys.load_private(key, passphrase_file)
    folder = _open(path)
    try:
        folder.lock()
        content = _read_record(folder)
        _check_content(folder, content, allow_unsigned=False)
        signature = private.sign(content)
        if folder.find(SIGNATURE):
            if _read_signature(folder) != signature:
                raise GpuzooError(
                    f"{path / SIGNATURE} exists and is another signature; remove it to "
                    "sign the run anew"
                )
        else:
            try:
                folder.write_file(SIGNATURE, signature)
            except OSError as error:
                raise GpuzooError(
                    f"{path / SIGNATURE} cannot be written: {error.strerror or error}"
                ) from None
    finally:
        folder.close()
    return {
        "run_dir": redact(str(path)), "signature": redact(str(path / SIGNATURE)),
        "signed_sha256": hashlib.sha256(content).hexdigest(),
        "public_key_sha256": keys.public_digest(private.public_key()),
    }  # fmt: skip


def check_signature(
    run: str | pathlib.Path, signed_by: str, *, allow_unsigned: bool = False
) -> dict:
    """Check that a run folder is as the owner of a key has signed it: the signature,
    the seal, and the digest of every file.

    Args:
        run: the run folder.
        signed_by: file of the public key.
        allow_unsigned: ignore files that the record does not list. Names that gpuzoo
            reads are refused even then.

    Returns:
        `verdict` (`signed`), `run_dir`, `files` (how many were compared), `unsigned`
        (names), `signed_sha256` and `public_key_sha256`.

    Raises:
        CheckFailed: the run has no signature, that of another key, or was changed.
        GpuzooError: it is not a run folder, or the key cannot be used.
    """
    path, public = expand(run), keys.load_public(signed_by)
    from cryptography.exceptions import InvalidSignature

    folder = _open(path)
    try:
        content = _read_record(folder)
        if folder.find(SIGNATURE) is None:
            raise CheckFailed(f"{path} is not signed: it has no {SIGNATURE}")
        try:
            public.verify(_read_signature(folder), content)
        except InvalidSignature:
            raise CheckFailed(
                f"{path / SIGNATURE} is not a signature of run.json by {signed_by}: "
                "one of them has been changed, or the key is another"
            ) from None
        files, unsigned = _check_content(folder, content, allow_unsigned=allow_unsigned)
    finally:
        folder.close()
    return {
        "verdict": "signed", "run_dir": redact(str(path)), "files": files,
        "unsigned": unsigned, "signed_sha256": hashlib.sha256(content).hexdigest(),
        "public_key_sha256": keys.public_digest(public),
    }  # fmt: skip


def _open(path: pathlib.Path) -> Folder:
    try:
        return Folder(path)
    except (FileNotFoundError, NotADirectoryError):
        raise no_run(path) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise GpuzooError(f"{path} is not a run folder: {why}") from None


def _read_record(folder: Folder) -> bytes:
    path = folder.path / "run.json"
    try:
        with open(folder.open_file("run.json"), "rb") as file:
            content = file.read(_LARGEST_RECORD + 1)
    except FileNotFoundError:
        raise no_run(folder.path) from None
    except OSError as error:
        raise GpuzooError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > _LARGEST_RECORD:
        raise GpuzooError(f"{path} is longer than {_LARGEST_RECORD:,} bytes")
    return content


def _read_signature(folder: Folder) -> bytes:
    try:
        with open(folder.open_file(SIGNATURE), "rb") as file:
            content = file.read(_SIZE + 1)
    except OSError as error:
        raise CheckFailed(
            f"{folder.path / SIGNATURE} cannot be read: {error.strerror or error}"
        ) from None
    if len(content) != _SIZE:
        raise CheckFailed(
            f"{folder.path / SIGNATURE} is not a signature: expected {_SIZE} bytes"
        )
    return content


def _check_content(
    folder: Folder, content: bytes, *, allow_unsigned: bool
) -> tuple[int, list[str]]:
    """Compare a run folder with its record; return how many files it lists, and the
    names of the others."""
    path = folder.path
    record = checked(path, lambda name: content, sealed=False)
    if record["state"] != "finished":
        raise GpuzooError(
            f"{path} is {record['state']}: only a finished run can be signed"
        )
    faults = []
    if record["seal"] != seal(record):
        faults.append("run.json has been changed since gpuzoo wrote it")
    if record["weights_sha256"] != record["files"]["weights.safetensors"]:
        faults.append("run.json has two digests of weights.safetensors")
    for name, sha256 in record["files"].items():
        if fault := _fault(path, name, sha256):
            faults.append(f"{name} {fault}")
    unsigned = sorted(_names(path) - {*record["files"], "run.json", SIGNATURE})
    wrong = {name: _unlisted_fault(path, name, record, faults) for name in unsigned}
    faults += [
        f"{name} {wrong[name]}"
        for name in unsigned
        if wrong[name] and (not allow_unsigned or _is_read(name))
    ]
    if not wrong.get(derived.REPORT):  # it follows from what is signed
        unsigned = [name for name in unsigned if name != derived.REPORT]
    if faults:
        more = f"; and {len(faults) - 3} more" * (len(faults) > 3)
        raise CheckFailed(f"{path}: {'; '.join(faults[:3])}{more}")
    return len(record["files"]), unsigned


def _unlisted_fault(path: pathlib.Path, name: str, record: dict, faults: list) -> str:
    """Return what is wrong with a file that run.json does not list: the report must be
    the one of this record, the verdict of the last verify one on this record. Where
    there are `faults` already, they are the reason if it is not."""
    if name not in derived.DERIVED:
        return "is not in the record of the run"
    if faults:
        return ""
    from gpuzoo.report import page

    read = functools.partial(read_inside, path)
    try:
        content = read(name)
        if name == derived.VERDICT:
            fine = derived.verdict_of(content, record) is not None
        else:
            fine = content == page.render(path, read)
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    again = "verify" if name == derived.VERDICT else "report"
    return "" if fine else f"is not of this record; gpuzoo {again} writes it again"


def _fault(path: pathlib.Path, name: str, sha256: str) -> str:
    try:
        with open(open_inside(path, name), "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return "" if found == sha256 else "has been changed"


def _names(path: pathlib.Path) -> set[str]:
    """Return the names of everything in a folder that is not a folder itself; of a link
    to a folder the link's."""
    found = set()

    def fail(error: OSError) -> None:
        raise CheckFailed(f"{error.filename} cannot be read: {error.strerror}")

    for top, folders, files in os.walk(path, onerror=fail):
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        where = pathlib.PurePath(os.path.relpath(top, path))
        found |= {(where / name).as_posix() for name in [*files, *links]}
    return found


def _is_read(name: str) -> bool:
    return name.endswith(".safetensors") or name.split("/")[0] in _READ
