# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Tell what happened: whether a folder changed, whether a secret leaked, what a command asked of the kernel."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import io
import json
import os
import re
import secrets
import stat
import subprocess
import tempfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Snapshots ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name in a folder. ``content`` is a file's SHA-256, a link's target, else empty; sizes in bytes, times in ns."""

    kind: str
    mode: int
    owner: tuple[int, int]
    size: int
    content: str
    mtime: int
    links: int


def snapshot(*roots: Path, besides: Sequence[str] = (), times: bool = True) -> dict[str, Entry]:
    """Every path at and below ``roots``, without following links; a root that is not there is the entry ``absent``.

    ``besides`` are name patterns (``*.lock``) to leave out; without ``times``, modification times are 0.
    """
    found: dict[str, Entry] = {}
    for root in roots:
        if not os.path.lexists(root):
            found[str(root)] = Entry(kind="absent", mode=0, owner=(0, 0), size=0, content="", mtime=0, links=0)
            continue
        below = sorted(Path(folder) / name for folder, folders, files in os.walk(root) for name in (*folders, *files))
        for path in (root, *below):
            if not any(path.match(pattern) for pattern in besides):
                found[str(path)] = _entry(path, times=times)
    return found


def _entry(path: Path, *, times: bool) -> Entry:
    status = path.lstat()
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(status.st_mode), "other")
    content = ""
    if kind == "file":
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == "link":
        content = os.fspath(path.readlink())
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid),
        size=0 if kind == "folder" else status.st_size,
        content=content,
        mtime=status.st_mtime_ns if times else 0,
        links=0 if kind == "folder" else status.st_nlink,
    )


def differences(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> list[str]:
    """One line for each path that appeared, vanished or changed, saying which of its properties did; sorted."""
    lines = [f"appeared: {path}" for path in after.keys() - before.keys()]
    lines += [f"vanished: {path}" for path in before.keys() - after.keys()]
    for path in before.keys() & after.keys():
        changed = [name for name in Entry.__slots__ if getattr(before[path], name) != getattr(after[path], name)]
        if changed:
            lines.append(f"changed: {path} ({', '.join(changed)})")
    return sorted(lines)


@contextmanager
def unchanged(*roots: Path, besides: Sequence[str] = (), times: bool = True) -> Iterator[None]:
    """Assert that the block left ``roots`` as they were, also when it leaves by an exception that the test expects."""
    before = snapshot(*roots, besides=besides, times=times)
    try:
        yield
    finally:
        found = differences(before, snapshot(*roots, besides=besides, times=times))
        assert not found, "state changed:\n" + "\n".join(found)


# Planted secrets ------------------------------------------------------------------------------------------------------

SMALLEST_SECRET = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Where a secret was found, and written how."""

    path: Path
    secret: str
    form: str


def plant(name: str) -> str:
    """A fresh secret in printable characters that cannot stand anywhere by accident, beginning with ``name``."""
    return f"{name}-{secrets.token_urlsafe(24)}"


def forms(secret: str | bytes) -> dict[str, bytes]:
    """How a secret may be written: as it is, escaped, in hexadecimal, UTF-16, and base64 at all three alignments.

    Raises:
        ValueError: the secret is so short that it would be found by chance.
    """
    raw = secret.encode() if isinstance(secret, str) else secret
    if len(raw) < SMALLEST_SECRET:
        raise ValueError(f"a secret of {len(raw)} bytes is found by chance: plant one of at least {SMALLEST_SECRET}")
    text = raw.decode("latin-1")
    found = {
        "raw": raw,
        "json": json.dumps(text)[1:-1].encode(),
        "url": urllib.parse.quote_from_bytes(raw, safe="").encode(),
        "hex": binascii.hexlify(raw),
        "HEX": binascii.hexlify(raw).upper(),
        "utf-16": text.encode("utf-16-le"),
    }
    for shift in range(3):
        # Base64 mixes a byte with its neighbours: only the characters made of this secret's bits alone are sought.
        encoded = base64.b64encode(bytes(shift) + raw)
        first, beyond = -(-shift * 8 // 6), (shift + len(raw)) * 8 // 6
        found[f"base64/{shift}"] = encoded[first:beyond]
        found[f"base64url/{shift}"] = encoded[first:beyond].translate(bytes.maketrans(b"+/", b"-_"))
    return found


def leaks(planted: Mapping[str, str | bytes], *places: Path) -> list[Leak]:
    """Every place below ``places`` (files, names, link targets) where one of ``planted`` stands in one of its forms.

    Line breaks do not hide a secret, nor do gzip, zlib and zip around it.
    """
    sought = {(name, form, value) for name, secret in planted.items() for form, value in forms(secret).items()}
    found: list[Leak] = []
    for place in places:
        below = [Path(folder) / name for folder, folders, files in os.walk(place) for name in (*folders, *files)]
        for path in (place, *sorted(below)):
            texts = [(path.name.encode(errors="surrogateescape"), "a name, ")]
            if path.is_symlink():
                texts.append((os.fsencode(path.readlink()), "a link's target, "))
            elif path.is_file():
                texts += [(data, how) for data, how in _layers(path.read_bytes())]
            found += [Leak(path=path, secret=name, form=how + form) for data, how in texts for name, form in _held(data, sought)]
    return found


def _held(data: bytes, sought: Iterable[tuple[str, str, bytes]]) -> list[tuple[str, str]]:
    joined = re.sub(rb"(?:\\r|\\n|\s)+", b"", data)
    return sorted((name, form) for name, form, value in sought if value in data or value in joined)


def _layers(data: bytes) -> Iterator[tuple[bytes, str]]:
    """The bytes themselves, and what is packed in them, one layer deep."""
    yield data, ""
    if data[:2] == b"\x1f\x8b":
        try:
            yield gzip.decompress(data), "gzip, "
        except (OSError, EOFError, zlib.error):
            return
    elif zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            for name in packed.namelist():
                yield name.encode() + b"\n" + packed.read(name), f"zip {name}, "


# System calls ---------------------------------------------------------------------------------------------------------

# -yy writes paths and protocols beside descriptors; failed calls are kept: to try is to tell.
TRACED = ("%network", "%file", "%desc")
OPENED_TO_WRITE = re.compile(r"\bO_(?:WRONLY|RDWR|CREAT|TRUNC|APPEND|TMPFILE)\b")
OPENING = frozenset({"open", "openat", "openat2", "creat"})
CHANGING = frozenset(
    [
        *("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat"),
        *("symlink", "symlinkat", "truncate", "ftruncate", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown"),
        *("lchown", "fchownat", "utime", "utimes", "futimesat", "utimensat", "mknod", "mknodat", "setxattr", "lsetxattr"),
        *("fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "mount", "umount2", "pivot_root", "fallocate"),
    ]
)
WRITING = frozenset(
    [
        *("write", "pwrite64", "writev", "pwritev", "pwritev2", "copy_file_range", "sendfile", "splice", "tee", "vmsplice"),
        *("fsync", "fdatasync", "sync_file_range", "syncfs"),
    ]
)
NETWORK = frozenset(
    [
        *("socket", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg", "recvfrom"),
        *("recvmsg", "recvmmsg", "getsockname", "getpeername", "setsockopt", "getsockopt", "shutdown"),
    ]
)
HARMLESS = re.compile(r'["<]/dev/(?:null|tty|pts/\d+|full|zero)\b')
LOCAL = re.compile(r"\bAF_(?:UNIX|LOCAL|NETLINK)\b|^\d+<(?:UNIX|NETLINK)")
ADDRESSED = re.compile(r"sa_family=AF_(?!UNIX|NETLINK|UNSPEC)")
LOOPBACK = re.compile(r'inet_addr\("127\.|inet_pton\(AF_INET6, "(?:::1|::ffff:127\.[0-9.]+)"')
LINE = re.compile(r"^(?P<pid>\d+)\s+(?P<name>\w+)\((?P<rest>.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One system call as strace wrote it: process, name, and the rest of the line (arguments and result)."""

    pid: int
    name: str
    rest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a command and all its children asked of the kernel. ``calls`` are those on files, descriptors and sockets."""

    status: int
    output: str
    calls: tuple[Call, ...]

    @property
    def network(self) -> list[Call]:
        """Calls on sockets other than Unix and netlink ones, also those that failed."""
        return [call for call in self.calls if call.name in NETWORK and not LOCAL.search(call.rest)]

    @property
    def beyond_loopback(self) -> list[Call]:
        """Connects and datagrams to an address that is not this machine's loopback."""
        towards = {"connect", "sendto", "sendmsg", "sendmmsg"}
        addressed = [call for call in self.network if call.name in towards and ADDRESSED.search(call.rest)]
        return [call for call in addressed if not LOOPBACK.search(call.rest)]

    @property
    def changes(self) -> list[Call]:
        """Calls that made, opened to write, changed or removed a file, also those that failed; not /dev/null and terminals."""
        writing = [call for call in self.calls if call.name in OPENING and (call.name == "creat" or OPENED_TO_WRITE.search(call.rest))]
        changing = [call for call in self.calls if call.name in CHANGING]
        return [call for call in (*writing, *changing) if not HARMLESS.search(call.rest)]


def trace(command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Trace:
    """Run ``command`` under ``strace -f`` and give what it did.

    Raises:
        RuntimeError: strace could not trace it (no permission, no such command).
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "trace"
        strace = ["strace", "-f", "-qqq", "-yy", "-s", "256", "-o", str(log), "-e", f"trace={','.join(TRACED)}", "--", *command]
        ran = subprocess.run(strace, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=cwd)
        calls = parse(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else ()
    if not calls:
        raise RuntimeError(f"strace saw nothing of {command[0]}: {ran.stdout.strip()}")
    return Trace(status=ran.returncode, output=ran.stdout, calls=calls)


def parse(log: str) -> tuple[Call, ...]:
    """The calls in strace's output; a call interrupted by another process's line is joined where it resumes."""
    calls: list[Call] = []
    pending: dict[tuple[str, str], str] = {}
    for line in log.splitlines():
        resumed = re.match(r"^(\d+)\s+<\.\.\. (\w+) resumed>(.*)$", line)
        if resumed:
            pid, name, rest = resumed.groups()
            calls.append(Call(pid=int(pid), name=name, rest=pending.pop((pid, name), "") + rest))
        elif found := LINE.match(line):
            pid, name, rest = found["pid"], found["name"], found["rest"]
            if rest.endswith("<unfinished ...>"):
                pending[pid, name] = rest.removesuffix("<unfinished ...>")
            else:
                calls.append(Call(pid=int(pid), name=name, rest=rest))
    # A process killed inside a call never resumes it, and still made it.
    calls += [Call(pid=int(pid), name=name, rest=rest) for (pid, name), rest in pending.items()]
    return tuple(calls)
