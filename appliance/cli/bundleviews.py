# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What the `bundle` commands print: tables for people, the same facts as one JSON document for programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tuf.api.metadata import Key, Root, Targets

from appliance.bundle.contents import Artifact, Blob
from appliance.bundle.lock import Lock
from appliance.cli.options import Output
from appliance.cli.render import emit, say, size_text
from appliance.digests import Digest, hex_of
from appliance.trust.client import VerifiedBundle
from appliance.trust.clock import format_instant
from appliance.trust.countersign import signature_states
from appliance.trust.keys import family
from appliance.trust.roles import read_role

if TYPE_CHECKING:
    from appliance.build.creating import Created  # only create itself may load what fetches

_NEEDED = "needed package"


class _Item(NamedTuple):
    """One line of a lock."""

    kind: str
    name: str
    version: str
    size: int
    license: str
    identity: str


class _RoleLine(NamedTuple):
    """One signed file of a bundle."""

    role: str
    version: int
    expires: str | None
    days_left: int | None
    signatures: dict[str, int]
    threshold: int

    def signed(self) -> str:
        """Return the signatures in words."""
        return f"{' + '.join(f'{count} {name}' for name, count in self.signatures.items())}, {self.threshold} needed"


def _items(lock: Lock, licenses: Mapping[str, str]) -> Iterator[_Item]:
    for image in lock.images:
        name, _, tag = image.reference.rpartition(":")
        yield _Item(
            "image", name, tag, sum(blob.size for blob in image.blobs), licenses.get(image.reference, ""), image.index + image.manifest
        )
    for chart in lock.charts:
        yield _Item("chart", chart.name, chart.version, chart.size, "", chart.payload + chart.values + chart.namespace)
    for model in lock.models:
        identity = "".join(f"{file.path}{file.digest}" for file in model.files)
        yield _Item("model", model.name, model.version, sum(file.size for file in model.files), model.license, identity)
    for file in lock.files:
        yield _Item("file", file.name, file.version, file.size, file.license, file.digest)
    for package in lock.packages.packages if lock.packages else ():
        kind = "package" if package.wanted else _NEEDED
        yield _Item(kind, package.name, package.version, package.size, "", package.digest)


def show_lock(path: Path, lock: Lock, previous: Lock | None, licenses: Mapping[str, str], output: Output) -> None:
    """Print every item of a new lock, and what changed against the one before."""
    items = list(_items(lock, licenses))
    before = {(item.kind, item.name): item for item in _items(previous, {})} if previous else {}
    changes = {(item.kind, item.name): _change(item, before.get((item.kind, item.name)), first=previous is None) for item in items}
    gone = [item for key, item in before.items() if key not in changes]
    changed = [changes[item.kind, item.name] for item in items] + ["removed"] * len(gone)
    document = {
        "lock": str(path),
        "name": lock.name,
        "version": lock.version,
        "size": sum(item.size for item in items),
        "items": [
            {"kind": item.kind, "name": item.name, "version": item.version, "size": item.size, "license": item.license, "change": change}
            for item, change in zip([*items, *gone], changed, strict=True)
        ],
    }
    columns = ("kind", "name", "version", "size", "licence", "change")
    emit(output, document, columns=columns, rows=list(_lock_rows([*items, *gone], changed)))
    counts = {word: sum(change.startswith(word) for change in changed) for word in ("new", "changed", "removed")}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or ("nothing changed" if previous else "the first lock")
    say(f"{path}: {len(items)} items, {size_text(sum(item.size for item in items))}; {told}")


def _lock_rows(items: Sequence[_Item], changed: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Give a row for each item; packages that nobody named and that did not change share one."""
    quiet = [item for item, change in zip(items, changed, strict=True) if item.kind == _NEEDED and not change]
    for item, change in zip(items, changed, strict=True):
        if item not in quiet:
            yield item.kind, item.name, item.version, size_text(item.size), item.license, change
    if quiet:
        yield _NEEDED, f"{len(quiet)} that those depend on", "", size_text(sum(item.size for item in quiet)), "", ""


def _change(item: _Item, before: _Item | None, *, first: bool) -> str:
    if before is None:
        return "" if first else "new"
    if (before.identity, before.version) == (item.identity, item.version):
        return ""
    return f"changed from {before.version}" if before.version != item.version else "changed"


def show_created(created: Created, publication: Path, output: Output) -> None:
    """Print what was made, and the command that adds the signatures that roles still lack."""
    document = {
        "bundle": str(created.bundle),
        "release": created.release,
        "blobs": created.blobs,
        "size": created.size,
        "unsigned": created.unsigned,
    }
    rows = [("bundle", str(created.bundle)), ("release", hex_of(created.release))]
    rows += [("blobs", str(created.blobs)), ("size", size_text(created.size))]
    emit(output, document, columns=("what", "value"), rows=rows)
    if created.unsigned:
        command = shlex.join(["appliance", "keys", "sign", str(created.bundle), "--publication", str(publication)])
        say(f"Not yet signed enough: {', '.join(created.unsigned)}. The other key holders run, with the folder of their own keys:")
        say(f"  {command} --keys DIR")


def _artifacts(bundle: VerifiedBundle) -> Iterator[tuple[str, Artifact, int]]:
    for each, contents in bundle.contents.items():
        for artifact in contents.artifacts:
            yield each.value, artifact, sum(bundle.blobs[digest].size for digest in artifact.blobs)


def _keys(bundle: VerifiedBundle) -> dict[str, Key]:
    """Return every key that may sign something here, by identifier."""
    name = f"{bundle.seen.targets}.targets.json"
    targets = read_role(bundle.metadata[name], Targets, what=name).signed
    root = read_role(bundle.root, Root, what="root").signed
    return {**(targets.delegations.keys if targets.delegations else {}), **root.keys}


def _role_states(bundle: VerifiedBundle, pinned_root: bytes, now: datetime) -> list[_RoleLine]:
    families = {keyid: str(family(key)) for keyid, key in _keys(bundle).items()}
    lines = []
    for state in signature_states(bundle.metadata, pinned_root=pinned_root):
        expires = bundle.expires.get(state.role)
        signed = sorted(families.get(keyid, "unknown") for keyid in state.signed)
        lines.append(
            _RoleLine(
                role=state.role,
                version=state.version,
                expires=format_instant(expires) if expires else None,
                days_left=(expires - now).days if expires else None,
                signatures={name: signed.count(name) for name in dict.fromkeys(signed)},
                threshold=state.threshold,
            )
        )
    root = read_role(bundle.root, Root, what="root")
    signed = sorted(families.get(keyid, "unknown") for keyid in root.signatures)
    first = _RoleLine(
        role="root",
        version=root.signed.version,
        expires=format_instant(root.signed.expires),
        days_left=(root.signed.expires - now).days,
        signatures={name: signed.count(name) for name in dict.fromkeys(signed)},
        threshold=root.signed.roles["root"].threshold,
    )
    return [first, *lines]


def show_bundle(bundle: VerifiedBundle, pinned_root: bytes, now: datetime, output: Output) -> None:
    """Print artifacts, roles with days left, and signatures by family of key."""
    roles = _role_states(bundle, pinned_root, now)
    release = bundle.release
    artifacts = list(_artifacts(bundle))
    document = {
        "release": bundle.digest,
        "name": release.name,
        "version": release.version,
        "line": bundle.line,
        "platform": release.platform,
        "kubernetes": release.kubernetes,
        "issued": format_instant(bundle.issued),
        "size": sum(blob.size for blob in bundle.blobs.values()),
        "artifacts": [_artifact_document(each, artifact, size) for each, artifact, size in artifacts],
        "roles": [role._asdict() for role in roles],
    }
    if output is Output.JSON:
        emit(output, document, columns=(), rows=())
        return
    rows = [(each, artifact.name, artifact.version, size_text(size), artifact.license) for each, artifact, size in artifacts]
    title = f"{release.name} {release.version}, line {bundle.line}, for {release.platform} with Kubernetes {release.kubernetes}"
    emit(output, document, columns=("class", "name", "version", "size", "licence"), rows=rows, title=title)
    told = [(line.role, str(line.version), "" if line.days_left is None else str(line.days_left), line.signed()) for line in roles]
    emit(output, document, columns=("role", "version", "days left", "signatures"), rows=told, title="")
    say(f"release {hex_of(bundle.digest)}, issued {format_instant(bundle.issued)}, {size_text(sum(b.size for b in bundle.blobs.values()))}")


def _artifact_document(each: str, artifact: Artifact, size: int) -> dict[str, object]:
    document: dict[str, object] = {
        "class": each,
        "name": artifact.name,
        "version": artifact.version,
        "size": size,
        "root": artifact.root,
        "license": artifact.license,
        "source": artifact.source,
    }
    if artifact.packages:
        document["packages"] = [{"name": package.name, "version": package.version, "size": package.size} for package in artifact.packages]
    return document


def show_verified(bundle: VerifiedBundle, output: Output) -> None:
    """Print that everything is as it was signed."""
    size = sum(blob.size for blob in bundle.blobs.values())
    release = bundle.release
    document = {
        "release": bundle.digest,
        "name": release.name,
        "version": release.version,
        "blobs": len(bundle.blobs),
        "size": size,
        "verified": True,
    }
    rows = [(release.name, release.version, str(len(bundle.blobs)), size_text(size), "verified")]
    emit(output, document, columns=("release", "version", "blobs", "size", "result"), rows=rows)


def _bytes(blobs: Mapping[Digest, Blob], digests: set[Digest]) -> int:
    return sum(blobs[digest].size for digest in digests)


def show_difference(before: VerifiedBundle, after: VerifiedBundle, output: Output) -> None:
    """Print which artifacts were added, removed or changed, and the bytes that one has and the other has not."""
    old = {(each, artifact.name): artifact for each, artifact, _ in _artifacts(before)}
    new = {(each, artifact.name): artifact for each, artifact, _ in _artifacts(after)}
    rows, listed = [], []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if was is not None and now is not None and was.root == now.root and was.blobs == now.blobs:
            continue
        change = "added" if was is None else "removed" if now is None else "changed"
        fresh = _bytes(after.blobs, set(now.blobs if now else ()) - before.blobs.keys())
        versions = (was.version if was else "", now.version if now else "")
        rows.append((change, *key, *versions, size_text(fresh)))
        listed.append({"change": change, "class": key[0], "name": key[1], "before": versions[0], "after": versions[1], "new_bytes": fresh})
    added, removed = after.blobs.keys() - before.blobs.keys(), before.blobs.keys() - after.blobs.keys()
    totals = {
        "added_bytes": _bytes(after.blobs, set(added)),
        "removed_bytes": _bytes(before.blobs, set(removed)),
        "shared_bytes": _bytes(after.blobs, set(after.blobs.keys() & before.blobs.keys())),
    }
    document = {"before": before.digest, "after": after.digest, "changes": listed, **totals}
    emit(output, document, columns=("change", "class", "name", "before", "after", "new bytes"), rows=rows)
    say(
        f"{len(rows)} artifacts differ; {size_text(totals['added_bytes'])} only in B, {size_text(totals['removed_bytes'])} only in A, "
        f"{size_text(totals['shared_bytes'])} in both"
    )
