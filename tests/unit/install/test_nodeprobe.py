# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The probe as it runs on a machine: Debian's python3, nothing of the package, from a pipe."""

from __future__ import annotations

import ast
import base64
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.adapters.host import Login, Talk, clock_offset, talk
from appliance.errors import ToolError
from appliance.install import nodeprobe
from appliance.install.facts import Busy, Facts, Reached, Route, check_facts, decode_answer
from appliance.install.preflight import _command, _script
from tests.support.site import facts

SOURCE = Path(nodeprobe.__file__)
HERE = Login(name="here")


@pytest.fixture
def probe() -> Iterator[Talk]:
    with talk(HERE, _command(HERE)) as open_talk:
        yield open_talk


def ask(probe: Talk, *, first: bool = False, **request: object) -> bytes:
    line = json.dumps(request).encode()
    return probe.ask(_script() + b"\n" + line if first else line, seconds=30)


def facts_of(probe: Talk) -> Facts:
    answer = ask(probe, first=True, do="facts", address="127.0.0.1", paths=["/", "/var", "/var/lib/appliance"])
    return decode_answer(answer, Facts, machine="here")


def test_it_imports_the_standard_library_only() -> None:
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filesystems": ()}, "expected the file systems of /, /var, /var/lib/appliance"),
        ({"filesystems": facts("x").filesystems[:2]}, "expected the file systems of"),
        ({"routes": (Route(destination="x", interface="eth0"),)}, "route 'x' is not an IPv4 range"),
        ({"routes": (Route(destination="10.0.0.1/8", interface="eth0"),)}, "route .* is not an IPv4 range"),
    ],
)
def test_an_answer_that_the_decisions_could_not_lean_on_is_refused_by_machine(changes: dict[str, object], words: str) -> None:
    paths = ["/", "/var", "/var/lib/appliance"]
    check_facts(facts("gpu1"), paths, machine="gpu1")
    with pytest.raises(ToolError, match=f"gpu1: the probe's answer cannot be read: {words}") as caught:
        check_facts(facts("gpu1", **changes), paths, machine="gpu1")
    assert caught.value.hint


def test_the_facts_of_this_machine_have_the_shape_that_preflight_reads(probe: Talk) -> None:
    found = facts_of(probe)
    assert found.hostname == socket.gethostname()
    assert found.cpus >= 1
    assert found.memory > 0
    assert found.has_address
    assert found.filesystem("/var").size > 0
    assert abs(clock_offset(probe, b'{"do": "clock"}')) < 5


def test_it_listens_where_nobody_does_and_says_where_somebody_does(probe: Talk) -> None:
    facts_of(probe)
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as probe_port:
        free = probe_port.getsockname()[1]
        probe_port.close()
        busy_port = taken.getsockname()[1]
        answer = ask(probe, do="listen", address="127.0.0.1", ports=[f"tcp/{busy_port}", f"tcp/{free}"])
        assert decode_answer(answer, Busy, machine="here").busy == (f"tcp/{busy_port}",)
        with socket.create_connection(("127.0.0.1", free), timeout=5):
            pass


def test_it_reaches_what_answers_and_says_why_not_otherwise(probe: Talk) -> None:
    facts_of(probe)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_udp,
        socket.create_server(("127.0.0.1", 0)) as there,
        socket.socket() as nobody,
    ):
        any_udp.bind(("127.0.0.1", 0))
        echo = any_udp.getsockname()[1]
        any_udp.close()
        nobody.bind(("127.0.0.1", 0))
        ask(probe, do="listen", address="127.0.0.1", ports=[f"udp/{echo}"])
        targets = [f"tcp/127.0.0.1:{there.getsockname()[1]}", f"udp/127.0.0.1:{echo}", f"tcp/127.0.0.1:{nobody.getsockname()[1]}"]
        answer = ask(probe, do="connect", targets=targets, seconds=2)
        assert decode_answer(answer, Reached, machine="here").results == dict(zip(targets, ["", "", "Connection refused"], strict=True))


def test_when_its_input_ends_it_is_gone_and_its_listeners_with_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    with talk(HERE, _command(HERE)) as probe:
        facts_of(probe)
        ask(probe, do="listen", address="127.0.0.1", ports=[f"tcp/{port}"])
        process = probe._process
    assert process.poll() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not on this machine")
def test_it_opens_nothing_for_writing_and_makes_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    calls = "trace=open,openat,creat,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,chmod,fchmodat,truncate"
    boot = _command(HERE)
    request = json.dumps({"do": "facts", "address": "127.0.0.1", "paths": ["/", "/var"]}).encode()
    done = subprocess.run(
        ["strace", "-f", "-o", trace, "-e", calls, *boot],
        input=_script() + b"\n" + request + b"\n",
        capture_output=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        pytest.skip("strace may not trace here")
    changing = [
        line for line in trace.read_text().splitlines() if "O_WRONLY" in line or "O_RDWR" in line or "O_CREAT" in line or "mkdir" in line
    ]
    assert [line for line in changing if "/dev/null" not in line] == []


def test_half_installed_packages_are_told_unless_this_site_will_finish_them(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"a": "installed", "b": "half-configured", "c": "config-files", "d": "unpacked", "e": "triggers-pending"}
    status = "\n\n".join(f"Package: {name}\nStatus: install ok {state}" for name, state in states.items())
    files = {"/var/lib/dpkg/status": status, "/etc/appliance/packages-added": "d\n"}
    monkeypatch.setattr(nodeprobe, "text_of", lambda path, default="": files.get(path, default))
    assert nodeprobe.packages() == ["b: half-configured"]


def test_a_mount_point_with_nothing_but_lost_and_found_is_no_leftover(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    monkeypatch.setattr(nodeprobe, "LEFTOVERS", (str(tmp_path),))
    assert nodeprobe.leftovers() == []
    (tmp_path / "member").touch()
    assert nodeprobe.leftovers() == [str(tmp_path)]


def test_an_answer_that_is_no_answer_names_the_machine() -> None:
    with pytest.raises(ToolError, match="gpu1: the probe's answer cannot be read"):
        decode_answer(b"Welcome to gpu1!", Facts, machine="gpu1")


def test_a_process_that_dies_says_its_last_words() -> None:
    with (
        talk(HERE, ["sh", "-c", "echo python3: not found >&2; exit 127"]) as dead,
        pytest.raises(ToolError, match="here: python3: not found"),
    ):
        dead.ask(b"{}", seconds=10)


def test_a_process_that_says_nothing_is_not_waited_for_for_ever() -> None:
    with talk(HERE, ["sh", "-c", "read line; read never"]) as mute, pytest.raises(ToolError, match="no answer"):
        mute.ask(b"{}", seconds=0.2)


def test_the_boot_line_carries_the_whole_script() -> None:
    assert base64.b64decode(_script()) == SOURCE.read_bytes()
