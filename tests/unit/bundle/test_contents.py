# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import pytest

from appliance.bundle.contents import (
    Artifact,
    Blob,
    ContentClass,
    Contents,
    ImageBinding,
    PackageEntry,
    check_contents,
    check_relative,
    check_same_blobs,
    merge_blobs,
)
from appliance.bundle.documents import decode, encode
from appliance.digests import CHUNK_BYTES, Digest, digest_of
from appliance.errors import FormatError, VerificationError
from tests.support.simulator import contents_of, sample_files

BIG = Blob(digest=digest_of(b"big"), size=CHUNK_BYTES + 1, chunks=(digest_of(b"1"), digest_of(b"2")))
OTHER = digest_of(b"other")
replace = msgspec.structs.replace


def files() -> Contents:
    return sample_files()[0][ContentClass.FILES]


def big(blob: Blob = BIG, content_class: ContentClass = ContentClass.FILES) -> Contents:
    artifact = Artifact(name="big", version="1", media_type="x/y", root=blob.digest, blobs=(blob.digest,))
    return contents_of(content_class, [artifact], [blob])


def first(contents: Contents, **changes: object) -> Contents:
    return replace(contents, artifacts=(replace(contents.artifacts[0], **changes), *contents.artifacts[1:]))


@pytest.mark.parametrize("reference", ["registry.example/a:1", "localhost/a:1", "registry:5000/team/a__b.c-d/e:V_1.2-rc", "a.b/c:_1"])
def test_an_image_under_its_full_reference_passes_with_or_without_its_digest(reference: str) -> None:
    check_contents(imaged(reference, reference))
    check_contents(imaged(reference, f"{reference}@{OTHER}"))


def test_valid_contents_pass_and_survive_their_bytes() -> None:
    for contents in (files(), big(), contents_of(ContentClass.CODE, [], [])):
        check_contents(contents)
        assert decode(encode(contents), Contents, what="contents") == contents


def image(**changes: Digest) -> ImageBinding:
    root = files().artifacts[0].root
    values = {"index": root, "manifest": root, "config": root, **changes}
    return ImageBinding(reference="registry.example/a:1", platform="linux/amd64", **values)


def package(**changes: object) -> PackageEntry:
    values: dict[str, object] = {"digest": files().artifacts[0].blobs[0], "size": 0, "path": "pool/a_1_amd64.deb"}
    values["size"] = {each.digest: each.size for each in files().blobs}[files().artifacts[0].blobs[0]]
    return msgspec.convert({"name": "a", "version": "1", "architecture": "amd64", **values, **changes}, PackageEntry)


def imaged(reference: str, name: str) -> Contents:
    """Contents of class images with one image, called `name` and bound to `reference`."""
    (blob,) = (each for each in files().blobs if each.digest == files().artifacts[0].root)
    binding = ImageBinding(reference=reference, platform="linux/amd64", index=blob.digest, manifest=blob.digest, config=blob.digest)
    artifact = Artifact(name=name, version="1", media_type="x/y", root=blob.digest, blobs=(blob.digest,), image=binding)
    return contents_of(ContentClass.IMAGES, [artifact], [blob])


BROKEN: dict[str, tuple[Callable[[], Contents], str]] = {
    "artifacts out of order": (lambda: replace(files(), artifacts=files().artifacts[::-1]), "listed twice or not in order"),
    "an artifact twice": (lambda: replace(files(), artifacts=files().artifacts[:1] * 2), "listed twice or not in order"),
    "blobs out of order": (lambda: replace(files(), blobs=files().blobs[::-1]), "blobs: .* is listed twice or not in order"),
    "a blob twice": (lambda: replace(files(), blobs=(files().blobs[0], *files().blobs)), "is listed twice"),
    "an unused blob": (lambda: replace(files(), artifacts=files().artifacts[:1]), "belongs to no artifact"),
    "an unlisted blob": (lambda: replace(files(), blobs=files().blobs[1:]), "is not listed"),
    "an artifact's blobs out of order": (lambda: first(files(), blobs=files().artifacts[0].blobs[::-1]), "not in order"),
    "a root that is not among the blobs": (lambda: first(files(), root=OTHER), "names .*, which is not among its blobs"),
    "a payload that is not among the blobs": (lambda: first(files(), payload=OTHER), "not among its blobs"),
    "a chunk too few": (lambda: big(replace(BIG, chunks=BIG.chunks[:1])), "lists 1 chunks, expected 2"),
    "a chunk too many": (lambda: big(replace(BIG, chunks=BIG.chunks * 2)), "lists 4 chunks, expected 2"),
    "no chunks for a large blob": (lambda: big(replace(BIG, chunks=())), "lists 0 chunks, expected 2"),
    "chunks for a small blob": (lambda: big(replace(BIG, size=1, chunks=(digest_of(b"1"),))), "expected none"),
    "a chunk that is no digest": (lambda: big(replace(BIG, chunks=(Digest("sha256:" + "g" * 64), BIG.chunks[1]))), "not a SHA-256 digest"),
    "chunks cut at the wrong place": (
        lambda: big(replace(BIG, chunks=(Digest(BIG.chunks[0] + BIG.chunks[1][:5]), Digest(BIG.chunks[1][5:])))),
        "not a SHA-256 digest",
    ),
    "a name with a space": (lambda: first(files(), name="a b"), "not a plain name"),
    "a name that begins with a dash": (lambda: first(files(), name="-a"), "not a plain name"),
    "a name with a new line": (lambda: first(files(), name="a\n"), "not a plain name"),
    "an image binding in files": (lambda: first(files(), image=image()), "image belongs to class images"),
    "weights in files": (lambda: first(files(), weights=files().artifacts[0].root), "weights belongs to class models"),
    "packages in files": (lambda: first(files(), packages=(package(),)), "packages belongs to class os"),
    "an image of foreign blobs": (
        lambda: replace(first(files(), image=image(config=OTHER)), content_class=ContentClass.IMAGES),
        "not among",
    ),
    "weights that are no blob": (lambda: replace(first(files(), weights=OTHER), content_class=ContentClass.MODELS), "not among its blobs"),
    "a package that climbs": (
        lambda: replace(first(files(), packages=(package(path="../a.deb"),)), content_class=ContentClass.OS),
        "not a plain relative path",
    ),
    "a package of another size": (
        lambda: replace(first(files(), packages=(package(size=1),)), content_class=ContentClass.OS),
        "package a has 1 bytes, its blob",
    ),
    **{
        f"a file's version {text!r}": (partial(first, files(), version=text), "is not a plain version")
        for text in ("", "{{ lookup('pipe', 'id') }}", "1 2", "../1", "1\n", "-1")
    },
    **{
        f"an image under the reference {text!r}": (partial(imaged, text, name), "is not its reference, host/name:tag")
        for text, name in (
            ("registry.example/{{ lookup('pipe', 'id') }}:1", "registry.example/a:1"),
            ("registry.example/a:1\n", "registry.example/a:1"),
            ("registry.example/b:1", "registry.example/a:1"),
            *((text, text) for text in ("registry.example/a", "registry.example/A:1", "a:1", "team/a:1", "registry.example:port/a:1")),
        )
    },
    "a name that climbs": (lambda: first(files(), name="a/../b"), "not a plain name"),
    **{
        f"a package's {field} {text!r}": (
            partial(replace, first(files(), packages=(package(**{field: text}),)), content_class=ContentClass.OS),
            "is not plain",
        )
        for field, text in (("name", "{{ x }}"), ("version", "1;id"), ("architecture", "a b"), ("path", "pool/{% x %}.deb"))
    },
}


@pytest.mark.parametrize(("broken", "match"), BROKEN.values(), ids=BROKEN.keys())
def test_contents_that_break_a_rule_are_refused(broken: Callable[[], Contents], match: str) -> None:
    with pytest.raises(FormatError, match=match) as caught:
        check_contents(broken())
    assert caught.value.hint


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "./a", "a/./b", "..", "a/../b", "a\\b", "a\nb", "a\x00b", "C:\\a", "a\x7f"])
def test_a_path_that_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(FormatError, match="not a plain relative path"):
        check_relative(path, what="x")


@pytest.mark.parametrize("path", ["a", "a/b.c", "pool/libc6_2.36-9_amd64.deb", "a b/ä", "...", "-a"])
def test_a_plain_path_passes(path: str) -> None:
    check_relative(path, what="x")


def test_one_digest_has_one_size_and_chunk_list_over_all_classes() -> None:
    assert merge_blobs([files(), big(content_class=ContentClass.MODELS)]).keys() == {blob.digest for blob in files().blobs} | {BIG.digest}
    assert merge_blobs([big(), big(content_class=ContentClass.MODELS)]) == {BIG.digest: BIG}
    for lie in (replace(BIG, size=CHUNK_BYTES + 2), replace(BIG, chunks=BIG.chunks[::-1])):
        with pytest.raises(VerificationError, match="class files and class models disagree"):
            merge_blobs([big(), big(lie, ContentClass.MODELS)])


def test_one_chunk_has_one_length_over_all_blobs() -> None:
    """A chunk is listed as 64 MiB of one blob and as the last byte of another; or a whole small blob as a full chunk."""
    last_as_first = Blob(digest=OTHER, size=CHUNK_BYTES + 7, chunks=(BIG.chunks[1], digest_of(b"3")))
    whole_as_first = Blob(digest=OTHER, size=CHUNK_BYTES + 7, chunks=(files().blobs[0].digest, digest_of(b"3")))
    merge_blobs([big(), files()])
    for lie in (last_as_first, whole_as_first):
        with pytest.raises(VerificationError, match=r"is listed with .* and with .* bytes"):
            merge_blobs([big(), files(), big(lie, ContentClass.MODELS)])
    shared = Blob(digest=OTHER, size=2 * CHUNK_BYTES + 1, chunks=(BIG.chunks[0], digest_of(b"3"), BIG.chunks[1]))
    merge_blobs([big(), big(shared, ContentClass.MODELS)])


def test_a_new_release_agrees_with_what_the_store_holds() -> None:
    known = merge_blobs([files(), big()])
    check_same_blobs(merge_blobs([big()]), known=known)
    check_same_blobs({}, known=known)
    with pytest.raises(VerificationError, match="an earlier release and this one disagree"):
        check_same_blobs({BIG.digest: replace(BIG, chunks=BIG.chunks[::-1])}, known=known)
