# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Values of a chart: what the site decides, and every image by the digest the release signs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from appliance.adapters.charts import default_values, pin_images, site_values
from appliance.digests import Digest
from appliance.errors import FormatError, VerificationError

DIGEST = Digest("sha256:" + "a" * 64)
OTHER = Digest("sha256:" + "b" * 64)
VALUES = b"""\
image: {repository: ghcr.io/x/y, tag: v1, digest: ""}
deep:
  inner: {repository: ghcr.io/x/z, tag: v2, digest: "", pullPolicy: Always}
plain: 1
"""


def chart(folder: Path, values: bytes) -> Path:
    path = folder / "blob"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (("c/Chart.yaml", b"name: c\n"), ("c/values.yaml", values), ("c/charts/sub/values.yaml", b"image: {}\n")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_every_image_gets_the_signed_digest_and_nothing_else_is_set(tmp_path: Path) -> None:
    images = {"ghcr.io/x/y:v1": DIGEST, "ghcr.io/x/z:v2": OTHER}
    pinned = pin_images(chart(tmp_path, VALUES), {"plain": 2}, images=images)
    assert pinned == {"plain": 2, "image": {"digest": DIGEST}, "deep": {"inner": {"digest": OTHER}}}


def test_an_image_the_release_does_not_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"ghcr.io/x/y:v1.*does not carry it"):
        pin_images(chart(tmp_path, VALUES), {}, images={"ghcr.io/x/z:v2": OTHER})


def test_a_value_that_names_another_digest_is_refused(tmp_path: Path) -> None:
    images = {"ghcr.io/x/y:v1": DIGEST, "ghcr.io/x/z:v2": OTHER}
    with pytest.raises(VerificationError, match="carries sha256:aaaa"):
        pin_images(chart(tmp_path, VALUES), {"image": {"digest": OTHER}}, images=images)


def test_another_tag_in_the_values_is_another_image(tmp_path: Path) -> None:
    images = {"ghcr.io/x/y:v9": DIGEST, "ghcr.io/x/z:v2": OTHER}
    assert pin_images(chart(tmp_path, VALUES), {"image": {"tag": "v9"}}, images=images)["image"] == {"tag": "v9", "digest": DIGEST}


@pytest.mark.parametrize("values", [b"[1]\n", b"{"], ids=["a list", "broken"])
def test_values_that_are_no_mapping_are_malformed(tmp_path: Path, values: bytes) -> None:
    with pytest.raises(FormatError):
        default_values(chart(tmp_path, values))


def test_what_is_not_a_packed_chart_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"not a chart")
    with pytest.raises(FormatError, match="not a packed chart"):
        default_values(path)


def test_the_site_decides_of_our_own_charts_only() -> None:
    ranges = {"pod_cidr": "10.1.0.0/16", "service_cidr": "10.2.0.0/16"}
    assert site_values("flannel", **ranges) == {"podCidr": "10.1.0.0/16"}
    assert site_values("coredns", **ranges) == {"clusterIP": "10.2.0.10"}
    assert site_values("somebody-elses", **ranges) == {}
