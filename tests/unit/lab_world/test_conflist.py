# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "images" / "flannel" / "gen-conflist"


def subnet_env(folder: Path, subnet: str, *, masquerade: bool = True) -> None:
    text = f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ={str(masquerade).lower()}\n"
    (folder / "new.env").write_text(text)
    (folder / "new.env").rename(folder / "subnet.env")


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    settings = {
        "FLANNEL_SUBNET_ENV": str(tmp_path / "subnet.env"),
        "FLANNEL_CONFLIST": str(tmp_path / "10-flannel.conflist"),
        "FLANNEL_CONFLIST_PERIOD": "0.05",
    }
    with subprocess.Popen([SCRIPT], env=os.environ | settings, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def written(writer: subprocess.Popen[str], folder: Path) -> dict[str, object]:
    """Waits for the writer's next line, then reads what it wrote."""
    assert writer.stdout is not None
    assert writer.stdout.readline().startswith("wrote ")
    bridge: dict[str, object] = json.loads((folder / "10-flannel.conflist").read_text())["plugins"][0]
    return bridge


def test_the_configuration_follows_the_subnet_flanneld_was_given(writer: subprocess.Popen[str], tmp_path: Path) -> None:
    subnet_env(tmp_path, "10.244.3.1/24")
    bridge = written(writer, tmp_path)
    assert (bridge["mtu"], bridge["ipMasq"]) == (1450, False)
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.244.3.0/24"}]], "routes": [{"dst": "10.244.0.0/16"}]}
    assert bridge["ipam"] == ipam
    subnet_env(tmp_path, "10.244.7.1/24", masquerade=False)
    bridge = written(writer, tmp_path)
    assert bridge["ipMasq"] is True
    assert "10.244.7.0/24" in json.dumps(bridge)


def test_the_writer_ends_at_once_when_it_is_asked_to(writer: subprocess.Popen[str], tmp_path: Path) -> None:
    subnet_env(tmp_path, "10.244.3.1/24")
    written(writer, tmp_path)
    writer.terminate()
    assert writer.wait(5) == 0
