# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A media set: the bundle laid out over self-describing parts (docs/bundle-format.md section 7).

A part is one file:

```
0        8   magic "APLPART1"
8        8   length T of the table, unsigned big-endian
16      32   SHA-256 of the table
48      16   zero
64       T   table: canonical JSON `PartTable`
64+T         metadata files in the order of the table, back to back
...          chunks in the order of the table, back to back
end-48   8   magic "APLPEND1"
end-40   8   length of the whole part, unsigned big-endian
end-32  32   SHA-256 of the 64 header bytes and the table
```

No byte is padding: each is compared or hashed. Nothing in a part is trusted: metadata is verified from the pinned root,
chunks against the signed contents. `PartTable` only says where to look.
"""

from __future__ import annotations

from typing import ClassVar

from appliance.bundle.documents import Document, Record, Sha256, Size

PART_MAGIC = b"APLPART1"
END_MAGIC = b"APLPEND1"
HEADER_BYTES = 64
TRAILER_BYTES = 48
PART_SUFFIX = ".part"
"""`<name>-<version>-<platform>.<index of 4 digits>.part`, index from 1."""


class MetadataEntry(Record, frozen=True, kw_only=True):
    """One file below `metadata/`: relative POSIX path, offset in the part, size, digest."""

    path: str
    offset: Size
    size: Size
    digest: Sha256


class ChunkEntry(Record, frozen=True, kw_only=True):
    """One whole chunk in this part: its digest, offset in the part and size in bytes."""

    digest: Sha256
    offset: Size
    size: Size


class PartTable(Document, frozen=True, kw_only=True):
    """What one part holds. `set` is the same in all `count` parts of a set; `index` counts from 1."""

    FORMAT: ClassVar[str] = "part/1"

    set: Sha256
    name: str
    version: str
    platform: str
    index: Size
    count: Size
    metadata: tuple[MetadataEntry, ...]
    chunks: tuple[ChunkEntry, ...]
