# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Other machines over ssh, and this one the same way: host keys, and a line-by-line talk with a process there.

Everything is OpenSSH's own client (`ssh`, `ssh-keyscan`); argument lists only, no shell here, nothing secret on a
command line. Host key checking is on in every call: the options come from the caller and end up as `-o` values.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import platform
import queue
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from appliance.errors import ToolError, VerificationError

_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
"""In the order of preference; DSA is not taken."""
_KEEP_BYTES = 16384
_MAX_LINE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """A public host key as ssh writes it: `kind` such as ssh-ed25519, `blob` in base64."""

    kind: str
    blob: str

    @property
    def fingerprint(self) -> str:
        """`SHA256:` and unpadded base64, as `ssh-keygen -l` prints it."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """How to reach one machine: `options` are ssh's `-o` values. `address` empty means this machine, without ssh."""

    name: str
    address: str = ""
    port: int = 22
    user: str = "root"
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended: exit status, all of stdout, the end of stderr."""

    code: int
    output: bytes
    errors: str


def own_system() -> tuple[str, str, str]:
    """Return what this very machine runs: id and version as os-release(5) has them, and the architecture; empty when unknown."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return release.get("ID", ""), release.get("VERSION_ID", ""), platform.machine()


def parse_host_key(kind: str, blob: str) -> HostKey | None:
    """Return the key, or None when this is not a host key of a kind that is taken."""
    try:
        known = kind in _KINDS and base64.b64decode(blob, validate=True)
    except binascii.Error:
        return None
    return HostKey(kind=kind, blob=blob) if known else None


def scan_host_keys(name: str, address: str, port: int, *, seconds: int = 5) -> tuple[HostKey, ...]:
    """Ask the ssh server at `address` for its host keys; best kind first. Nothing is trusted by asking.

    Raises:
        ToolError: nobody answers there.
    """
    command = ["ssh-keyscan", "-4", "-T", str(seconds), "-p", str(port), "-t", "ed25519,ecdsa,rsa", "--", address]
    done = _run(command, b"", seconds=seconds * 4, step=f"ssh-keyscan {name}")
    keys = []
    for line in done.output.decode(errors="replace").splitlines():
        words = line.split()
        key = parse_host_key(words[1], words[2]) if len(words) == 3 else None  # noqa: PLR2004 - host, kind, key
        if key is not None and key not in keys:
            keys.append(key)
    if not keys:
        raise ToolError(
            f"{name}: no ssh server answers at {address} port {port}",
            step=f"ssh-keyscan {name}",
            hint=f"start the machine, check its cable and its address, and that sshd listens on port {port}",
        )
    return tuple(sorted(keys, key=lambda key: _KINDS.index(key.kind)))


def run_on(login: Login, command: Sequence[str], *, stdin: bytes = b"", seconds: float = 60) -> Outcome:
    """Run `command` on the machine of `login` and wait for it.

    Raises:
        VerificationError: the machine shows another host key than the accepted one.
        ToolError: it cannot be reached or logged in to, or does not end in time.
    """
    done = _run(_command(login, command), stdin, seconds=seconds, step=_step(login))
    _refuse_ssh_failure(login, done.code, done.errors)
    return done


def why_silent(login: Login, *, seconds: float = 60) -> str:
    """Return empty when the machine of `login` lets us in, else why it is not reached.

    Raises:
        VerificationError: the machine shows another host key than the accepted one.
        ToolError: it answers, and refuses the login or does not end in time.
    """
    done = _run(_command(login, ["true"]), b"", seconds=seconds, step=_step(login))
    if "Permission denied" not in done.errors and not _shows_other_key(done.errors) and login.address and done.code == _SSH_FAILED:
        return _last_reason(done.errors)
    _refuse_ssh_failure(login, done.code, done.errors)
    return ""


def _step(login: Login) -> str:
    return f"ssh to {login.name}" if login.address else f"a command on {login.name}"


def _command(login: Login, command: Sequence[str]) -> list[str]:
    if not login.address:
        return list(command)
    options = [word for option in login.options for word in ("-o", option)]
    return ["ssh", "-T", "-x", "-a", *options, "-p", str(login.port), "-l", login.user, "--", login.address, shlex.join(command)]


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _run(command: Sequence[str], stdin: bytes, *, seconds: float, step: str) -> Outcome:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=seconds, check=False, env=_environment())
    except FileNotFoundError as error:
        raise ToolError(f"{command[0]}: not on this machine", step=step, hint=f"install {command[0]} (package openssh-client)") from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{step}: no end after {seconds:.0f} s", step=step, hint="look at the machine, then run it again") from error
    return Outcome(code=done.returncode, output=done.stdout, errors=done.stderr.decode(errors="replace")[-_KEEP_BYTES:])


_SSH_FAILED = 255


def _last_reason(errors: str) -> str:
    return next((line for line in reversed(errors.splitlines()) if line.strip()), "no reason given").strip()


def _shows_other_key(errors: str) -> bool:
    return "Host key verification failed" in errors or "No matching host key" in errors


def _refuse_ssh_failure(login: Login, code: int, errors: str) -> None:
    if not login.address or code != _SSH_FAILED:
        return
    reason = _last_reason(errors)
    if _shows_other_key(errors):
        raise VerificationError(
            f"{login.name} ({login.address}): the ssh host key is not the one that was accepted",
            hint="find out who changed it; accept a rebuilt machine's new key only at its own console",
        )
    if "Permission denied" in errors:
        hint = f"let {login.user} of {login.name} log in with a key of this machine (ssh-copy-id, or ssh_key in the site file)"
        raise ToolError(f"{login.name} ({login.address}): ssh refuses {login.user}: {reason}", step=_step(login), hint=hint)
    raise ToolError(
        f"{login.name} ({login.address}): ssh failed: {reason}",
        step=_step(login),
        hint="start the machine, check its cable and its address, then run it again",
    )


class Talk:
    """A process on a machine that answers each line with a line. Made by `talk`."""

    def __init__(self, login: Login, process: subprocess.Popen[bytes]) -> None:
        """Begin to listen to `process`."""
        self._login, self._process = login, process
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        self._errors = b""
        self._listeners = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._listen_for_errors)]
        for listener in self._listeners:
            listener.start()

    def ask(self, line: bytes, *, seconds: float) -> bytes:
        """Send `line`, return the next line that comes.

        Raises:
            VerificationError: the machine shows another host key than the accepted one.
            ToolError: the process ended or does not answer in time.
        """
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended; the end of its output says why
            _stream(self._process.stdin).write(line + b"\n")
            _stream(self._process.stdin).flush()
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty as error:
            step = _step(self._login)
            raise ToolError(
                f"{self._login.name}: no answer after {seconds:.0f} s", step=step, hint="look at the machine, then run it again"
            ) from error
        if answer is None:
            raise self._ended()
        return answer

    def close(self) -> None:
        """End the talk: the process there sees the end of its input and goes; after two seconds it is made to."""
        with suppress(BrokenPipeError):
            _stream(self._process.stdin).close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for listener in self._listeners:
            listener.join(timeout=2)
        for stream in (self._process.stdout, self._process.stderr):
            _stream(stream).close()

    def _ended(self) -> ToolError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = -1
        self._listeners[1].join(timeout=2)
        errors = self._errors.decode(errors="replace")
        _refuse_ssh_failure(self._login, code, errors)
        last = next((line for line in reversed(errors.splitlines()) if line.strip()), f"exit status {code}")
        return ToolError(
            f"{self._login.name}: {last.strip()}", step=_step(self._login), hint="log in there by hand and look, then run it again"
        )

    def _listen(self) -> None:
        stream = _stream(self._process.stdout)
        while line := stream.readline(_MAX_LINE_BYTES):
            self._answers.put(line.rstrip(b"\n"))
        self._answers.put(None)

    def _listen_for_errors(self) -> None:
        stream = _stream(self._process.stderr)
        while piece := stream.readline(_KEEP_BYTES):
            self._errors = (self._errors + piece)[-_KEEP_BYTES:]


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ToolError("a pipe is not open", step="start a process", hint="run it again")
    return stream


@contextmanager
def talk(login: Login, command: Sequence[str]) -> Iterator[Talk]:
    """Start `command` on the machine of `login`; it is gone when the context ends.

    Raises:
        ToolError: ssh is not on this machine.
    """
    words = _command(login, command)
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment())
    except FileNotFoundError as error:
        raise ToolError(f"{words[0]}: not on this machine", step=_step(login), hint=f"install {words[0]}") from error
    conversation = Talk(login, process)
    try:
        yield conversation
    finally:
        conversation.close()


def clock_offset(ask: Talk, line: bytes, *, rounds: int = 3) -> float:
    """Return how many seconds the other machine's clock is ahead of this one's, from the quickest of `rounds` answers.

    `line` must make the other side answer its time in seconds since 1970.

    Raises:
        ToolError: it does not answer, or not with a number.
    """
    best: tuple[float, float] | None = None
    for _ in range(rounds):
        before = time.time()
        answer = ask.ask(line, seconds=10)
        after = time.time()
        try:
            offset = float(answer) - (before + after) / 2
        except ValueError as error:
            raise ToolError(f"expected a time, got {answer[:80]!r}", step="read a clock", hint="run it again") from error
        if best is None or after - before < best[0]:
            best = (after - before, offset)
    return best[1] if best else 0.0
