# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A client of OCI registries: documents by tag or digest, blobs by digest from any offset, basic and token logins.

Sources: OCI distribution specification 1.1, "Pull"; the token authentication of distribution
(`Www-Authenticate: Bearer realm=...,service=...,scope=...`); RFC 7617 for basic. A login is sent to the registry's own
token service only over https, or to where a mirror was written down as plain http on purpose.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

import httpx

from appliance.adapters.credentials import DOCKER_HUB, Credentials, Login
from appliance.adapters.download import Answer, Location, Pauses, Transient, Web, public_url
from appliance.adapters.references import Reference
from appliance.bundle.formats import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from appliance.digests import Digest, digest_of
from appliance.errors import ToolError, UsageError, VerificationError

MAX_MANIFEST_BYTES: Final = 8 * 1024 * 1024
_MAX_TOKEN_BYTES = 256 * 1024
_HUB_ENDPOINT = "https://registry-1.docker.io"
_ACCEPT = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}"
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_OK, _PARTIAL, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 200, 206, 401, 403, 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A document of a registry and what it says it is. `digest` was computed from `data`."""

    media_type: str
    digest: Digest
    data: bytes


class Registry:
    """Reads from registries; one for a whole run, safe to use from several threads."""

    def __init__(self, web: Web, *, credentials: Credentials, locate: Callable[[str], Location | None]) -> None:
        """`locate` gives where a host is really asked (`https://host[:port][/prefix]`), None for the host itself."""
        self._web = web
        self._credentials = credentials
        self._locate = locate
        self._granted: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def manifest(self, reference: Reference, digest: Digest | None = None) -> Fetched:
        """Return the document that `digest`, else the pin, else the tag of `reference` names.

        Raises:
            VerificationError: its bytes have another digest than was asked for or announced.
            ToolError: it is absent, not to be had with this login, or the registry failed.
        """
        wanted = digest or reference.digest
        name = wanted or reference.tag
        pauses = Pauses(f"{reference}: manifest {name}", step="fetch a manifest", wait=self._web.wait)
        while True:
            try:
                with self._open(reference, f"manifests/{name}", {"Accept": _ACCEPT}) as answer:
                    return _document(reference, wanted, answer)
            except Transient as error:
                pauses.after(error)

    def small_blob(self, reference: Reference, digest: Digest, *, size: int) -> bytes:
        """Return a blob of `size` bytes, at most MAX_MANIFEST_BYTES, such as an image's config.

        Raises:
            VerificationError: its bytes have another digest.
            ToolError: it cannot be had, or is larger.
        """
        if size > MAX_MANIFEST_BYTES:
            raise ToolError(f"{reference}: config {digest} of {size} bytes is too large", step="fetch a config")
        pauses = Pauses(f"{reference}: blob {digest}", step="fetch a config", wait=self._web.wait)
        while True:
            try:
                with self._open(reference, f"blobs/{digest}", {}) as answer:
                    return _document(reference, digest, answer).data
            except Transient as error:
                pauses.after(error)

    def opener(self, reference: Reference, digest: Digest, *, manifest: bool) -> Callable[[int], AbstractContextManager[httpx.Response]]:
        """Return what opens the bytes of `digest` from an offset on, for the download cache."""
        path = f"manifests/{digest}" if manifest else f"blobs/{digest}"

        def open_at(offset: int) -> AbstractContextManager[httpx.Response]:
            headers = {"Accept": _ACCEPT} if manifest else {}
            return self._open(reference, path, headers | ({"Range": f"bytes={offset}-"} if offset else {}))

        return open_at

    def _base(self, reference: Reference) -> tuple[Location, str]:
        """Return where `reference` is asked (its `url` up to the repository), and the host whose login counts."""
        found = self._locate(reference.host)
        if found is None:
            endpoint = _HUB_ENDPOINT if reference.host == DOCKER_HUB else f"https://{reference.host}"
            found = Location(url=endpoint)
        parts = urlsplit(found.url)
        prefix = parts.path.strip("/")
        repository = f"{prefix}/{reference.name}" if prefix else reference.name
        return Location(url=f"{parts.scheme}://{parts.netloc}/v2/{repository}", ca=found.ca), parts.netloc

    @contextmanager
    def _open(self, reference: Reference, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        base, host = self._base(reference)
        location = Location(url=f"{base.url}/{path}", ca=base.ca)
        key = (host, base.url)
        for last in (False, True):
            granted = self._granted.get(key)
            with self._web.open(location, headers={**headers, "Authorization": granted} if granted else headers) as answer:
                if answer.status_code != _UNAUTHORIZED or last or _origin(str(answer.url)) != _origin(location.url):
                    _check_status(reference, path, answer)
                    yield answer
                    return
                challenge = answer.headers.get_list("www-authenticate")
            with self._lock:  # one token request at a time, and not one by each worker
                if self._granted.get(key) == granted:
                    self._granted[key] = self._answer_challenge(reference, base, host, challenge)

    def _answer_challenge(self, reference: Reference, base: Location, host: str, challenges: list[str]) -> str:
        login = self._credentials.login(DOCKER_HUB if host == urlsplit(_HUB_ENDPOINT).netloc else host)
        for challenge in challenges:
            scheme, _, rest = challenge.strip().partition(" ")
            parameters = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
            if scheme.lower() == "bearer" and "realm" in parameters:
                return self._token(reference, base, login, parameters)
            if scheme.lower() == "basic":
                if login is None:
                    raise _denied(reference, host)
                return login.basic()
        raise ToolError(f"{reference}: {host} asks for a login in a way this version does not know", step="log in to a registry")

    def _token(self, reference: Reference, base: Location, login: Login | None, parameters: Mapping[str, str]) -> str:
        realm = urlsplit(parameters["realm"])
        if login is not None and realm.scheme != "https" and urlsplit(base.url).scheme == "https":
            raise ToolError(
                f"{reference}: the registry sends logins to {public_url(parameters['realm'])}, which is not https",
                step="log in to a registry",
                hint="tell who runs the registry; a password is not sent in the clear",
            )
        repository = urlsplit(base.url).path.removeprefix("/v2/")
        query = {"service": parameters.get("service", ""), "scope": parameters.get("scope") or f"repository:{repository}:pull"}
        url = f"{parameters['realm']}{'&' if realm.query else '?'}{urlencode({k: v for k, v in query.items() if v})}"
        headers = {}
        if login is not None and login.identity_token:
            raise UsageError(
                f"{reference}: the login of {realm.netloc} is an identity token; this version sends user and password only",
                hint="run `docker login` with a user and an access token instead",
            )
        if login is not None:
            headers["Authorization"] = login.basic()
        answer = self._web.get(Location(url=url, ca=base.ca), headers=headers, limit=_MAX_TOKEN_BYTES, step="log in to a registry")
        return f"Bearer {_token_of(reference, realm.netloc, answer)}"


def _token_of(reference: Reference, host: str, answer: Answer) -> str:
    if answer.status in {_UNAUTHORIZED, _FORBIDDEN}:
        raise _denied(reference, host)
    try:
        document = json.loads(answer.body)
        token = document.get("token") or document.get("access_token")
    except (ValueError, AttributeError):
        token = None
    if answer.status != _OK or not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise ToolError(f"{reference}: {host} gave no token (HTTP {answer.status})", step="log in to a registry")
    return token


def _denied(reference: Reference, host: str) -> ToolError:
    return ToolError(
        f"{reference}: {host} wants a login, or another one",
        step="log in to a registry",
        hint=f"run `docker login {host}`, or point DOCKER_CONFIG at the folder whose config.json has the login",
    )


def _check_status(reference: Reference, path: str, answer: httpx.Response) -> None:
    status = answer.status_code
    if status in {_OK, _PARTIAL}:
        return
    where = public_url(str(answer.url))
    if status in {_UNAUTHORIZED, _FORBIDDEN}:
        raise _denied(reference, urlsplit(where).netloc)
    if status == _NOT_FOUND:
        raise ToolError(
            f"{reference}: {path} is not there ({where})",
            step="ask a registry",
            hint="check the name and tag in the profile; if it was there at `bundle lock`, the upstream removed it: lock again",
        )
    raise ToolError(f"{reference}: HTTP {status} from {where}", step="ask a registry")


def _document(reference: Reference, wanted: Digest | None, answer: httpx.Response) -> Fetched:
    body = bytearray()
    try:
        for piece in answer.iter_raw():
            body += piece
            if len(body) > MAX_MANIFEST_BYTES:
                raise ToolError(f"{reference}: a manifest of more than {MAX_MANIFEST_BYTES} bytes", step="fetch a manifest")
    except httpx.HTTPError as error:
        raise Transient(f"{public_url(str(answer.url))}: {type(error).__name__}") from error
    data = bytes(body)
    digest = digest_of(data)
    expected = wanted or answer.headers.get("docker-content-digest") or digest
    if str(expected).startswith("sha256:") and digest != expected:
        raise VerificationError(
            f"{reference}: expected a manifest {expected}, got {digest}",
            hint="fetch again; if it stays, the registry or something before it changes what it hands out",
        )
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
    return Fetched(media_type=media_type, digest=digest, data=data)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
