"""`gpuzoo new-key`, `sign`, `check-signature`, `encrypt` and `decrypt`."""

import dataclasses
import signal
from typing import Annotated, Literal

import tyro

from gpuzoo.cli.parsing import Common, Flag, Output, Word
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand


def _clean_up_on_signals() -> None:
    """End as after Ctrl-C, which leaves no partial file."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)


@dataclasses.dataclass(frozen=True)
class NewKey:
    """Create a key: gpuzoo new-key PATH.

    A signing key is PATH (private, mode 0600) and PATH.pub (public); both are PEM. An
    encryption key is one file. Needs gpuzoo[protect], as all commands with keys do.
    """

    path: Word
    """The file of the key; an existing one is never overwritten."""
    kind: Annotated[
        Literal["signing", "encryption"], tyro.conf.arg(name="for")
    ] = "signing"  # fmt: skip
    """signing: Ed25519; encryption: AES-256-GCM."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.deploy.keys import new_key

        made = new_key(self.path, self.kind)
        self.output.note(f"{made['key']}: private, keep it secret")
        if made["public_key"]:
            self.output.note(f"{made['public_key']}: public, for those who check")
        self.output.last_line(made)
        return 0


@dataclasses.dataclass(frozen=True)
class Sign:
    """Sign a finished run: gpuzoo sign RUN --key KEY.

    Writes run.json.sig into the run folder: an Ed25519 signature of run.json, which
    has the digest of every file of the run.

    Exit codes: 0 signed, 1 the run has been changed, 2 wrong use.
    """

    run: Word
    """The run folder."""
    key: Annotated[str, tyro.conf.arg(name="key")]
    """File of the private key, mode 0600."""
    passphrase_file: str | None = None
    """File with the passphrase of the key, mode 0600; default: prompt, if it has
    one."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.deploy.signing import sign

        made = sign(self.run, self.key, self.passphrase_file)
        self.output.note(f"{made['signature']}: {made['run_dir']} is signed")
        self.output.last_line(made)
        return 0


@dataclasses.dataclass(frozen=True)
class CheckSignature:
    """Check the signature of a run, its seal and the digest of every file.

    Nothing is re-run: gpuzoo verify RUN --signed-by PUB does both.

    Exit codes: 0 signed and unchanged, 1 it is not, 2 wrong use.
    """

    run: Word
    """The run folder."""
    signed_by: str
    """File of the public key, from its owner and not from the run."""
    allow_unsigned: Flag = False
    """Ignore files that the run did not write, but not those with names that gpuzoo
    reads."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.deploy.signing import check_signature

        found = check_signature(
            self.run, self.signed_by, allow_unsigned=self.allow_unsigned
        )
        note = self.output.note
        note(
            f"{found['run_dir']}: signed by the owner of {self.signed_by}, "
            f"{found['files']} files unchanged"
        )
        if found["unsigned"]:
            note(f"not signed: {', '.join(found['unsigned'])}")
        self.output.last_line(found)
        return 0


@dataclasses.dataclass(frozen=True)
class Encrypt:
    """Encrypt a file or a folder: gpuzoo encrypt PATH --out FILE.

    AES-256-GCM. The key is derived with scrypt from a passphrase, for which you are
    prompted twice, or is read from a file.
    """

    path: Word
    """A file, or a folder without links; it is not changed."""
    out: str
    """The encrypted file."""
    passphrase_file: str | None = None
    """File with the passphrase in one line, mode 0600; default: prompt."""
    key: str | None = None
    """Key file of gpuzoo new-key PATH --for encryption, instead of a passphrase."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.deploy import contents, encryption, keys

        keys.check_installed()
        encryption.check_out(self.out)
        for name, file in (
            ("--passphrase-file", self.passphrase_file), ("--key", self.key),
        ):  # fmt: skip
            if file and contents.is_inside(expand(file), expand(self.path)):
                raise GpuzooError(
                    f"{name} {file!r} is part of what is encrypted; keep it elsewhere"
                )
        secret = keys.secret(self.passphrase_file, self.key, new=True)
        _clean_up_on_signals()
        made = encryption.encrypt(self.path, self.out, secret)
        self.output.note(
            f"{made['out']}: {made['files']} files, {made['bytes']:,} bytes"
        )
        self.output.last_line(made)
        return 0


@dataclasses.dataclass(frozen=True)
class Decrypt:
    """Decrypt a file of gpuzoo encrypt: gpuzoo decrypt FILE --out PATH.

    PATH is the file or folder to write. It is written only if every byte is authentic.

    Exit codes: 0 done, 1 wrong passphrase or key, or the file was changed, 2 wrong use.
    """

    file: Word
    """The encrypted file."""
    out: str
    """The file or folder to write."""
    passphrase_file: str | None = None
    """File with the passphrase in one line, mode 0600; default: ask."""
    key: str | None = None
    """The key file that it was encrypted with."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.deploy import encryption, keys

        keys.check_installed()
        encryption.check_out(self.out)
        header = encryption.read_header(self.file)
        if not self.key and not self.passphrase_file and not header.with_passphrase:
            raise GpuzooError(f"{self.file} was encrypted with a key file; use --key")
        secret = keys.secret(self.passphrase_file, self.key)
        _clean_up_on_signals()
        made = encryption.decrypt(self.file, self.out, secret)
        self.output.note(
            f"{made['out']}: {made['files']} files, {made['bytes']:,} bytes"
        )
        self.output.last_line(made)
        return 0
