# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Every media type, predicate URI and format name, in one place (docs/bundle-format.md section 3)."""

from __future__ import annotations

from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"

HELM_CONFIG: Final = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART: Final = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"

MODEL_MANIFEST: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
MODEL_WEIGHT_RAW: Final = "application/vnd.cncf.model.weight.v1.raw"
MODEL_WEIGHT_CONFIG_RAW: Final = "application/vnd.cncf.model.weight.config.v1.raw"
MODEL_DOC_RAW: Final = "application/vnd.cncf.model.doc.v1.raw"
MODEL_FILEPATH: Final = "org.cncf.model.filepath"

FILE_ARTIFACT: Final = "application/vnd.appliance.file.v1"
FILE_LAYER: Final = "application/vnd.appliance.file.content.v1"
PACKAGES_ARTIFACT: Final = "application/vnd.appliance.packages.v1"
PACKAGES_CONFIG: Final = "application/vnd.appliance.packages.index.v1+json"
PACKAGE_LAYER: Final = "application/vnd.debian.binary-package"
INSTALLER_ARTIFACT: Final = "application/vnd.appliance.installer.v1"
INSTALLER_LAYER: Final = "application/vnd.appliance.installer.pyz.v1"
METADATA_ARTIFACT: Final = "application/vnd.appliance.metadata.v1"
METADATA_CONFIG: Final = "application/vnd.appliance.metadata.config.v1+json"
METADATA_LAYER: Final = "application/vnd.appliance.metadata.file.v1"
WEIGHTS_DSSE: Final = "application/vnd.in-toto+dsse"

OCI_TITLE: Final = "org.opencontainers.image.title"
OCI_REF_NAME: Final = "org.opencontainers.image.ref.name"

STATEMENT: Final = "https://in-toto.io/Statement/v1"
STATEMENT_PAYLOAD: Final = "application/vnd.in-toto+json"
PREDICATE_WEIGHTS: Final = "https://appliance.invalid/predicates/weights-manifest/v1"
PREDICATE_RECEIPT: Final = "https://appliance.invalid/predicates/import-receipt/v1"
PREDICATE_SITE_POLICY: Final = "https://appliance.invalid/predicates/site-policy/v1"
