# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The release's charts become Helm releases of the site; what is as it should be gets no new revision.

Values are those that the release signs, then what the site file decides of our own charts, then the digest of every
image, from the signed contents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from appliance.adapters.charts import ChartWanted, HelmPlace, ensure_charts, pin_images, site_values
from appliance.bundle.contents import ContentClass
from appliance.digests import Digest
from appliance.errors import FormatError
from appliance.install.places import SitePlaces
from appliance.install.sitefile import SiteFile
from appliance.store import Store, StoredRelease

HELM = Path("/usr/local/bin/helm")


def charts_wanted(site: SiteFile, store: Store, stored: StoredRelease) -> tuple[ChartWanted, ...]:
    """Return the Helm releases that `stored` signs, with every value settled.

    Raises:
        FormatError: a chart is not in the contents, or its values are not an object.
        VerificationError: a chart wants an image that the release does not carry.
    """
    artifacts = {artifact.name: artifact for artifact in stored.bundle.contents[ContentClass.CHARTS].artifacts}
    images = _images(stored)
    wanted = []
    for release in stored.bundle.release.charts:
        artifact = artifacts.get(release.chart)
        if artifact is None or artifact.payload is None:
            raise FormatError(f"release.json: chart {release.chart!r} is not in the contents", hint="carry the bundle again")
        chart = store.blob_path(artifact.payload)
        own = site_values(release.chart, pod_cidr=site.network.pod_cidr, service_cidr=site.network.service_cidr)
        values = {**_values(release.name, release.values), **own}
        pinned = pin_images(chart, values, images=images)
        wanted.append(ChartWanted(name=release.name, namespace=release.namespace, chart=chart, values=pinned))
    return tuple(wanted)


def ensure(wanted: tuple[ChartWanted, ...], places: SitePlaces) -> tuple[str, ...]:
    """Make the Helm releases as they are wanted; return the names of those that changed.

    Raises:
        ToolError: helm failed for one of them.
    """
    changed = ensure_charts(wanted, HelmPlace(helm=HELM, kubeconfig=places.kubeconfig))
    return tuple(name for name, did in changed.items() if did)


def _images(stored: StoredRelease) -> Mapping[str, Digest]:
    bindings = (artifact.image for artifact in stored.bundle.contents[ContentClass.IMAGES].artifacts)
    return {binding.reference: binding.index for binding in bindings if binding is not None}


def _values(name: str, text: str) -> dict[str, object]:
    values = json.loads(text) if text else {}
    if not isinstance(values, dict):
        raise FormatError(f"release.json: the values of {name} are not an object", hint="carry the bundle again")
    return values
