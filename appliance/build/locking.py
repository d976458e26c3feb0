# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`bundle lock`: from what a person wants to every digest, size and licence of it.

The same upstreams give the same lock, byte for byte: it holds no time, host or mirror, and every list is in the order
of the profile or of names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rfc8785

from appliance.adapters.disk import read_small, write_atomic
from appliance.adapters.hashing import hash_file
from appliance.adapters.parallel import for_each
from appliance.build.cache import Wanted
from appliance.build.charts import Installation, check_images, pack_chart
from appliance.build.collecting import FETCHING, Tools, local_file
from appliance.build.images import ResolvedImage, resolve_image
from appliance.build.models import lock_model, model_bytes
from appliance.build.profiles import PLATFORMS, read_profile
from appliance.bundle.documents import MAX_DOCUMENT_BYTES, decode, encode
from appliance.bundle.lock import Lock, LockedChart, LockedFile, LockedImage, LockedModel, LockedPackage, LockedPackages, check_lock
from appliance.bundle.profile import ChartWanted, FileWanted, Profile
from appliance.digests import Digest, digest_of
from appliance.errors import FormatError, UsageError, VerificationError
from appliance.progress import SILENT, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """A new lock: `notes` are things a person should know, `licenses` what images say of themselves."""

    lock: Lock
    path: Path
    previous: Lock | None
    licenses: dict[str, str]
    notes: tuple[str, ...]


def lock_path(profile: Path) -> Path:
    """Return where the lock of `profile` lies: `core.toml` gives `core.lock.json` beside it."""
    return profile.with_name(f"{profile.stem}.lock.json")


def changed_profile(path: Path, lock: Lock) -> Path | None:
    """Return the profile beside the lock at `path` if it is no longer the one that was locked; None also where none lies there."""
    profile = path.with_name(f"{path.name.removesuffix('.lock.json')}.toml")
    if not path.name.endswith(".lock.json") or not profile.is_file():
        return None
    return profile if digest_of(read_small(profile, limit=MAX_DOCUMENT_BYTES)) != lock.profile else None


def read_lock(path: Path) -> tuple[Lock, bytes]:
    """Return the lock at `path` and its bytes.

    Raises:
        HostError, FormatError: it cannot be read, is none, or names a file outside its model's folder.
    """
    data = read_small(path, limit=MAX_DOCUMENT_BYTES)
    lock = decode(data, Lock, what=str(path))
    check_lock(lock, what=str(path))
    return lock, data


def lock_profile(
    path: Path, *, tools: Tools, target: Path | None = None, helm: Path | None = None, workers: int, progress: Progress = SILENT
) -> Locked:
    """Resolve the profile at `path` and write its lock to `target` or beside it.

    Raises:
        UsageError: the profile names something that is not there or not done.
        VerificationError, FormatError: something is not what it is pinned to or malformed.
        HostError, ToolError: this machine or an outside tool failed; the old lock is untouched.
    """
    profile, data = read_profile(path)
    for what, wanted in (("chart", profile.charts), ("model", profile.models)):
        for each in wanted:
            if not (path.parent / each.path).is_dir():
                raise UsageError(
                    f"{path}: {what} {each.name}: {path.parent / each.path} is no folder", hint="correct its path in the profile"
                )
    target = target or lock_path(path)
    previous = _previous(target)
    resolver = _Resolver(profile=profile, folder=path.parent, tools=tools, workers=workers, progress=progress)
    images = resolver.images()
    charts, notes = resolver.charts(tuple(image.locked for image in images), helm)
    lock = Lock(
        format=Lock.FORMAT,
        profile=digest_of(data),
        name=profile.name,
        version=profile.version,
        platform=profile.platform,
        kubernetes=profile.kubernetes,
        images=tuple(image.locked for image in images),
        charts=charts,
        models=resolver.models(),
        files=resolver.files(),
        packages=resolver.packages(),
        installer=profile.installer,
    )
    progress.finish()
    write_atomic(target, encode(lock))
    licenses = {image.locked.reference: image.license for image in images}
    return Locked(lock=lock, path=target, previous=previous, licenses=licenses, notes=notes)


def _previous(path: Path) -> Lock | None:
    """Return the lock that is there already; one that cannot be read is as good as none, since it is made anew."""
    if not path.is_file():
        return None
    try:
        return read_lock(path)[0]
    except FormatError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resolver:
    profile: Profile
    folder: Path
    tools: Tools
    workers: int
    progress: Progress

    def images(self) -> list[ResolvedImage]:
        """Resolve every image; its small documents go into the cache, so that create need not ask for them again."""
        system, architecture, _ = PLATFORMS[self.profile.platform]
        self.progress.start("resolve images", total=len(self.profile.images), unit="images")

        def one(reference: str) -> ResolvedImage:
            found = resolve_image(self.tools.registry, reference, system=system, architecture=architecture)
            for digest, data in found.documents.items():
                if not self.tools.cache.holds(digest, len(data)):
                    write_atomic(self.tools.cache.path(digest), data, mode=0o444)
            self.progress.advance(1)
            return found

        return for_each([image.reference for image in self.profile.images], one, workers=FETCHING)

    def charts(self, images: Sequence[LockedImage], helm: Path | None) -> tuple[tuple[LockedChart, ...], tuple[str, ...]]:
        """Pack every chart and check its images."""
        self.progress.start("pack charts", total=len(self.profile.charts), unit="charts")
        done = [self._chart(wanted, images, helm) for wanted in self.profile.charts]
        literal = [chart.name for chart, rendered in done if not rendered]
        note = f"no helm on this machine: of {', '.join(literal)} only images written out in templates were checked"
        notes = (f"{note}; install helm or give --helm PATH to check all",)
        return tuple(chart for chart, _ in done), notes if literal else ()

    def _chart(self, wanted: ChartWanted, images: Sequence[LockedImage], helm: Path | None) -> tuple[LockedChart, bool]:
        packed = pack_chart(self.folder / wanted.path)
        try:
            values = rfc8785.dumps(wanted.values).decode()  # type: ignore[arg-type]
        except (rfc8785.CanonicalizationError, TypeError, ValueError) as error:
            raise FormatError(
                f"chart {wanted.name}: its values are not JSON: {error}", hint="use strings, numbers, booleans, lists and tables"
            ) from error
        how = Installation(release=wanted.name, namespace=wanted.namespace, values=values, kubernetes=self.profile.kubernetes)
        rendered = check_images(packed, how, helm=helm, images=images)
        self.progress.advance(1)
        locked = LockedChart(
            name=wanted.name,
            version=packed.version,
            path=wanted.path,
            namespace=wanted.namespace,
            values=values,
            payload=packed.digest,
            size=len(packed.data),
        )
        return locked, rendered

    def models(self) -> tuple[LockedModel, ...]:
        """Read every model once."""
        folders = [self.folder / model.path for model in self.profile.models]
        self.progress.start("read models", total=sum(model_bytes(folder) for folder in folders))
        advance = self.progress.advance
        return tuple(
            lock_model(model, folder, workers=self.workers, advance=advance)
            for model, folder in zip(self.profile.models, folders, strict=True)
        )

    def files(self) -> tuple[LockedFile, ...]:
        """Fetch every file, or find it in the cache if it is pinned."""
        self.progress.start("fetch files")
        return tuple(for_each(self.profile.files, self._file, workers=FETCHING))

    def _file(self, wanted: FileWanted) -> LockedFile:
        pin = Digest(f"sha256:{wanted.sha256}") if wanted.sha256 else None
        local = local_file(wanted.url)
        what = f"file {wanted.name}"
        if local is not None:
            hashes = hash_file(local, advance=self.progress.advance)
        elif pin is not None and self.tools.cache.path(pin).exists():
            size = self.tools.cache.path(pin).stat().st_size
            hashes = self.tools.cache.fetch(
                Wanted(digest=pin, size=size, what=what), self.tools.file_opener(wanted.url), advance=self.progress.advance
            )
        else:
            opener = self.tools.file_opener(wanted.url)
            hashes = self.tools.cache.fetch_unknown(opener, what=what, key=wanted.url, advance=self.progress.advance)
        if pin is not None and hashes.digest != pin:
            raise VerificationError(
                f"{what}: expected {pin}, got {hashes.digest} from {wanted.url}",
                hint="compare with what the upstream publishes, then correct the pin",
            )
        return LockedFile(
            name=wanted.name, version=wanted.version, url=wanted.url, digest=hashes.digest, size=hashes.size, license=wanted.license
        )

    def packages(self) -> LockedPackages | None:
        """Let apt solve the closure."""
        wanted = self.profile.packages
        if wanted is None:
            return None
        self.progress.start(f"solve packages for {wanted.suite}")
        found = self.tools.apt(self.profile.platform).closure(wanted.names)
        locked = [
            LockedPackage(
                name=each.name,
                version=each.version,
                architecture=each.architecture,
                url_path=each.path,
                digest=each.digest,
                size=each.size,
                wanted=each.name in wanted.names,
            )
            for each in found
        ]
        return LockedPackages(suite=wanted.suite, packages=tuple(locked))
