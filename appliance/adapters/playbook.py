# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Ansible, through ansible-runner: run one playbook, report what happens as typed events, explain what failed.

Ansible is started as `PYTHON -m ansible playbook ...` with this process's own module path, because a one-file installer has
no `ansible-playbook` on PATH. Nothing of the caller's Ansible settings is read. What a run leaves in its private folder
(0700) is Ansible's output alone, `run.log`; results of tasks that carry secrets are censored by Ansible (`no_log`), and the
files ansible-runner keeps of environment, variables and events are removed.

Ansible evaluates variables as templates, on this machine and as its user. What comes here was written by people and signers
elsewhere, so a value that looks like a template is refused before anything is started.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import cast

import ansible_runner

from appliance.adapters.disk import at
from appliance.adapters.leftovers import end_leftovers
from appliance.adapters.playbook_failures import Failure, as_error, failure_of
from appliance.errors import ApplianceError, FormatError, HostError, ToolError

_BESIDE = Path(__file__).resolve().parents[2] / "playbooks"
_INSIDE = Path(__file__).resolve().parents[1] / "data" / "playbooks"
_LOG = "run.log"
_FORKS = 20
_CIPHER = "aes128-gcm@openssh.com"
"""Asked for first: three times as fast as OpenSSH's first choice where the CPU has AES, and it has it where GPUs are."""
_FOREIGN = re.compile(
    r"(?!ANSIBLE_(CALLBACK_PLUGINS|CONFIG|HOME|LOCAL_TEMP|NOCOLOR|PIPELINING|SSH_|TIMEOUT|GATHERING|HOST_KEY|STDOUT_CALLBACK|RETRY))ANSIBLE_[A-Z0-9_]+"
)
_TEMPLATE = re.compile(r"\{[{%#]")
_SOCKETS = Path("/run")
"""Where ssh's control sockets go: a path of theirs may have 107 characters in all, and the private folder's is long already."""
_ENVIRONMENT_KEPT = ("HOME", "PATH", "SSH_AUTH_SOCK", "TMPDIR", "USER", "LOGNAME")


class TaskStatus(StrEnum):
    """How a task ended on a host."""

    OK = "ok"
    CHANGED = "changed"
    SKIPPED = "skipped"
    FAILED = "failed"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """One task on one host has ended; `role` is empty for a play's own task; `seconds` is its time there."""

    host: str
    play: str
    role: str
    task: str
    status: TaskStatus
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaybookResult:
    """A run that ended well. `changed` is the number of changed tasks by host, 0 included; `log` is Ansible's own output."""

    name: str
    changed: Mapping[str, int]
    changes: tuple[TaskEvent, ...]
    """Every task that changed something, or in check mode would; in the order they ended. Tasks that carry secrets are not told."""
    seconds: float
    log: Path


def playbooks_folder() -> Path:
    """Return where the playbooks are: inside the installed package, or beside it in a source tree.

    Raises:
        HostError: neither is there.
    """
    for folder in (_INSIDE, _BESIDE):
        if (folder / "site.yml").is_file():
            return folder
    raise HostError(f"{_INSIDE}: no playbooks in this installation", hint="install appliance again from the installer of the release")


def run_playbook(
    name: str,
    *,
    inventory: Mapping[str, object],
    variables: Mapping[str, object],
    private_data_dir: Path,
    on_event: Callable[[TaskEvent], None],
    check: bool = False,
) -> PlaybookResult:
    """Run `playbooks/<name>.yml`; with `check`, change nothing and tell what would change.

    `inventory` is Ansible's `all` group as YAML would write it. `on_event` is called from this thread. Running again resumes.

    Raises:
        ToolError: a task failed or a machine is not reachable; the message has host, task and cause, `step` the task.
        VerificationError, FormatError: our own program on a machine refused with that exit code.
        FormatError: a variable or a word of the inventory is a template.
        HostError: the private folder cannot be written (a full disk), or there are no playbooks; a machine is unfit.
    """
    _refuse_templates(inventory, "inventory")
    _refuse_templates(variables, "variables")
    _make_private(private_data_dir)
    began = time.monotonic()
    listener = _Listener(on_event=on_event)
    with at(private_data_dir), _ended(private_data_dir), _sockets() as sockets:
        runner = ansible_runner.run(
            private_data_dir=str(private_data_dir),
            project_dir=str(playbooks_folder()),
            playbook=f"{name}.yml",
            inventory=dict(inventory),
            extravars=dict(variables),
            envvars=_environment(private_data_dir, sockets),
            cmdline="--check" if check else None,
            forks=_FORKS,
            event_handler=listener,
            quiet=True,
            ident="run",
        )
        log = scrub_run(private_data_dir)
    if runner.status == "canceled":  # Ctrl-C or SIGTERM, which ansible-runner takes to end Ansible first
        raise KeyboardInterrupt
    if listener.failures or runner.rc != 0:
        raise _explain(name, tuple(listener.failures), code=runner.rc, log=log)
    return PlaybookResult(name=name, changed=listener.counts(), changes=tuple(listener.changes), seconds=time.monotonic() - began, log=log)


def _refuse_templates(value: object, where: str) -> None:
    """Refuse every string, key or value, that Ansible would evaluate."""
    if isinstance(value, str) and _TEMPLATE.search(value):
        raise FormatError(
            f"{where}: {value[:200]!r} is a template, expected plain words; nothing was changed",
            hint="correct it in the site file; if it comes from the release, do not install it and ask the publisher who signed it",
        )
    if isinstance(value, Mapping):
        for key, below in value.items():
            _refuse_templates(key, where)
            _refuse_templates(below, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for number, below in enumerate(value, start=1):
            _refuse_templates(below, f"{where} {number}")


@contextmanager
def _ended(folder: Path) -> Iterator[None]:
    """Leave nothing of Ansible running when the run cannot be followed any more."""
    followed = False
    try:
        yield
        followed = True
    finally:
        if not followed:
            end_leftovers(folder)


@contextmanager
def _sockets() -> Iterator[Path]:
    """Give ssh a private folder with a short name for its control sockets; it is gone afterwards."""
    place = _SOCKETS if os.access(_SOCKETS, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="appliance-ssh-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@dataclass(slots=True, kw_only=True)
class _Listener:
    """Turns ansible-runner's events into ours. Answers False: runner then keeps no file of the event."""

    on_event: Callable[[TaskEvent], None]
    stats: dict[str, dict[str, int]] = field(default_factory=dict)
    changes: list[TaskEvent] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __call__(self, raw: Mapping[str, object]) -> bool:
        """Take one event."""
        about = raw.get("event_data")
        if raw.get("event") == "playbook_on_stats" and isinstance(about, dict):
            self.stats = cast("dict[str, dict[str, int]]", about)
        status = _STATUS.get(str(raw.get("event")))
        if status is None or not isinstance(about, dict) or "host" not in about:
            return False
        result = about.get("res")
        result = result if isinstance(result, dict) else {}
        self._take(status, cast("dict[str, object]", about), cast("dict[str, object]", result))
        return False

    def _take(self, status: TaskStatus, about: Mapping[str, object], result: Mapping[str, object]) -> None:
        if status is TaskStatus.OK and result.get("changed"):
            status = TaskStatus.CHANGED
        event = TaskEvent(
            host=str(about["host"]),
            play=str(about.get("play", "")),
            role=str(about.get("role", "")),
            task=str(about.get("task", "")),
            status=status,
            seconds=_seconds(about.get("duration")),
        )
        if status is TaskStatus.CHANGED:
            self.changes.append(event)
        if status in {TaskStatus.FAILED, TaskStatus.UNREACHABLE} and not about.get("ignore_errors"):
            unreachable = status is TaskStatus.UNREACHABLE
            self.failures.append(failure_of(event.host, event.task, result, unreachable=unreachable))
        self.on_event(event)

    def counts(self) -> dict[str, int]:
        """Return how many tasks changed something, by host, as Ansible itself counts at the end: censored ones too."""
        return {host: self.stats.get("changed", {}).get(host, 0) for host in sorted(self.stats.get("processed", {}))}


_STATUS = {
    "runner_on_ok": TaskStatus.OK,
    "runner_on_failed": TaskStatus.FAILED,
    "runner_on_unreachable": TaskStatus.UNREACHABLE,
    "runner_on_skipped": TaskStatus.SKIPPED,
}


def _seconds(duration: object) -> float:
    return float(duration) if isinstance(duration, int | float) else 0.0


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise HostError(f"{folder}: {error.strerror}", hint="run it as root, or name another folder with --state") from error


def _environment(folder: Path, sockets: Path) -> dict[str, str]:
    """Return the whole environment of Ansible: its settings, and of this process only what ssh and Python need."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    search = os.pathsep.join([str(_launcher(folder).parent), kept.get("PATH", os.defpath)])
    return {
        **kept,
        "PATH": search,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CALLBACK_PLUGINS": "",
        "ANSIBLE_CONFIG": str(_no_settings(folder)),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "ansible" / "tmp"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_HOST_KEY_CHECKING": "1",
        "ANSIBLE_SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=120s -o Ciphers=^{_CIPHER}",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets),
        "ANSIBLE_TIMEOUT": "20",
        "ANSIBLE_GATHERING": "explicit",
        "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "0",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
    }


def _no_settings(folder: Path) -> Path:
    """Write a settings file, so that none of the machine's is read.

    The pause between looks at the workers has no environment variable; Ansible's own 1 ms costs a fifth of a second run.
    """
    path = folder / "ansible.cfg"
    path.write_text("[defaults]\ninternal_poll_interval = 0.01\n", encoding="utf-8")
    return path


def _launcher(folder: Path) -> Path:
    """Write the `ansible-playbook` that ansible-runner starts: this very Python, with ansible-core's own entry point.

    ansible-runner adds to the caller's environment instead of replacing it, so what is not ours is forgotten here.
    """
    programs = folder / "bin"
    programs.mkdir(mode=0o700, exist_ok=True)
    launcher = programs / "ansible-playbook"
    foreign = sorted(name for name in os.environ if _FOREIGN.fullmatch(name))
    forget = f"unset {' '.join(foreign)}\n" if foreign else ""
    launcher.write_text(f'#!/bin/sh\n{forget}exec {shlex.quote(sys.executable)} -m ansible playbook "$@"\n', encoding="utf-8")
    launcher.chmod(0o700)
    return launcher


def scrub_run(folder: Path) -> Path:
    """Keep Ansible's output and nothing else of a run, also of one that was killed; returns the log.

    Raises:
        OSError: the log cannot be kept.
    """
    log = folder / _LOG
    output = folder / "artifacts" / "run" / "stdout"
    if output.is_file():
        output.replace(log)
        log.chmod(0o600)
    for name in ("artifacts", "env", "inventory", "ansible", "bin"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "ansible.cfg").unlink(missing_ok=True)
    return log


def _explain(name: str, failures: tuple[Failure, ...], *, code: int, log: Path) -> ApplianceError:
    if not failures:
        last = _last_line(log)
        return ToolError(f"playbook {name} ended with {code}: {last}", step=name, hint=f"read {log}, then run it again")
    refused = next((failure for failure in failures if failure.code), failures[0])
    return as_error(refused, others={failure.host for failure in failures} - {refused.host}, log=log)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it said nothing"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
