# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The paper sheet: what a person types and compares before anything from a medium runs (design of first trust). Pure.

The sheet is printed on the connected side and travels apart from the medium. The copy beside the parts is there to be
printed; a site believes the paper only.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.bundle.release import Release
from appliance.digests import Digest, hex_of

INSTALLER_NAME = "install.pyz"
SIGNATURE_NAMESPACE = "appliance-installer"
_GROUP = 8


def grouped(digest: Digest) -> str:
    """Return the 64 digits of `digest` in two lines of four groups of eight, to be compared by eye."""
    digits = hex_of(digest)
    groups = [digits[start : start + _GROUP] for start in range(0, len(digits), _GROUP)]
    return "\n".join("    " + " ".join(groups[start : start + 4]) for start in range(0, len(groups), 4))


def typed_commands(medium: str = "/media/STICK") -> tuple[str, str]:
    """Return the two lines a person types: the digest, and the signature check where the site has allowed signers."""
    file = f"{medium}/{INSTALLER_NAME}"
    return (
        f"sha256sum {file}",
        f"ssh-keygen -Y verify -f /etc/appliance/allowed_signers -I publisher -n {SIGNATURE_NAMESPACE} -s {file}.sig < {file}",
    )


def init_command(medium: str = "/media/STICK") -> str:
    """Return the line that begins a site from the medium."""
    return f"python3 {medium}/{INSTALLER_NAME} site init /etc/appliance/site.toml"


def render_sheet(
    *,
    release: Release,
    root: Digest,
    root_version: int,
    installer: Digest | None,
    parts: Sequence[tuple[str, int]],
    set_digest: Digest,
    written_by: str,
) -> str:
    """Return the sheet as plain text of at most 78 columns where names allow it."""
    first, second = typed_commands()
    lines = [
        "PAPER SHEET - print this on the machine that wrote the media, carry it apart",
        "",
        f"Name        {release.name}",
        f"Version     {release.version}",
        f"Line        {release.line}",
        f"Platform    {release.platform}",
        f"Written by  {written_by}",
        "",
    ]
    if installer is not None:
        lines += [
            "1. On the site's first machine, TYPE this line. Run nothing from the medium",
            "   before, and believe no output but this command's:",
            "",
            f"    {first}",
            "",
            "   Compare all 64 digits:",
            "",
            grouped(installer),
            "",
            "   One digit differs: stop, keep the medium, call the person named above.",
            "",
            "2. Where this site already keeps the publisher's allowed signers and",
            f"   {INSTALLER_NAME}.sig is on the medium, TYPE this as well, in one line:",
            "",
            f"    {second}",
            "",
            "   It must say: Good signature.",
            "",
            "3. With the site file in its place, TYPE this line. It shows the root of the",
            "   line; compare it with these digits before you answer:",
            "",
            f"    {init_command()}",
            "",
        ]
    else:
        lines += ["This set carries no installer: use the one the site has. The root of the line is:", ""]
    lines += [f"   root {root_version}", grouped(root), "", "Parts", ""]
    width = max(len(name) for name, _ in parts)
    lines += [f"    {name:<{width}}  {size:>14} bytes" for name, size in parts]
    lines += ["", "Set", "", grouped(set_digest), "", "Checked on the site by ______________________  on ______________", ""]
    return "\n".join(lines)
