# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The sheet's own typed commands decide, whatever lies on the stick."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.carry.sheet import SIGNATURE_NAMESPACE, typed_commands
from appliance.digests import digest_of
from tests.support.carried import INSTALLER, World
from tests.support.faults import flip_byte

LIAR = "#!/bin/sh\necho OK\necho 'Good \"appliance-installer\" signature for publisher'\nexit 0\n"


@pytest.fixture
def stick(world: World) -> Path:
    """A stick that lies wherever it can: every script on it says OK."""
    folder = world.write().sheet.parent
    for name in ("sha256sum", "ssh-keygen", "python3", "verify.sh", "autorun.sh", "README.sh"):
        (folder / name).write_text(LIAR)
        (folder / name).chmod(0o755)
    return folder


def typed(line: str, stick: Path, allowed: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Type a line of the sheet on a machine, standing in the stick's folder as a careless person might."""
    said = line.replace("/media/STICK", shlex.quote(str(stick)))
    if allowed is not None:
        said = said.replace("/etc/appliance/allowed_signers", shlex.quote(str(allowed)))
    return subprocess.run(["/bin/sh", "-c", said], cwd=stick, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)


def sheet_of(stick: Path) -> str:
    return next(stick.glob("*.sheet.txt")).read_text()


def digits_on(sheet: str) -> str:
    """The 64 digits under 'Compare all 64 digits'."""
    lines = sheet.split("Compare all 64 digits:")[1].strip().splitlines()[:2]
    return "".join("".join(line.split()) for line in lines)


def test_the_typed_digest_is_the_sheets_for_the_true_installer(stick: Path) -> None:
    first, _ = typed_commands()
    assert first in sheet_of(stick)
    assert typed(first, stick).stdout.split()[0] == digits_on(sheet_of(stick)) == digest_of(INSTALLER).removeprefix("sha256:")


@pytest.mark.parametrize("offset", [0, len(INSTALLER) // 2, -1])
def test_one_other_byte_of_the_installer_gives_other_digits_though_the_whole_stick_says_ok(stick: Path, offset: int) -> None:
    flip_byte(stick / "install.pyz", offset)
    done = typed(typed_commands()[0], stick)
    assert "OK" not in done.stdout
    assert done.stdout.split()[0] != digits_on(sheet_of(stick))


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs the OpenSSH client")
def test_the_second_typed_line_refuses_one_other_byte(stick: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / "key")], check=True)
    kind, data, *_ = (keys / "key.pub").read_text().split()
    (keys / "allowed_signers").write_text(f'publisher namespaces="{SIGNATURE_NAMESPACE}" {kind} {data}\n')
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(keys / "key"), "-n", SIGNATURE_NAMESPACE, str(stick / "install.pyz")]
    subprocess.run(sign, check=True, capture_output=True)
    second = typed_commands()[1]
    assert second in sheet_of(stick)
    good = typed(second, stick, keys / "allowed_signers")
    assert (good.returncode, "Good" in good.stdout) == (0, True)
    flip_byte(stick / "install.pyz", 30)
    bad = typed(second, stick, keys / "allowed_signers")
    assert bad.returncode != 0
    assert "Good" not in bad.stdout
