"""Directories as MosaicML Streaming writes them, by its format, and a shard that its MDSWriter 0.13 has written."""

import base64
import bz2
import gzip
import io
import json
import zlib

import numpy as np

PACK = {"gz": gzip.compress, "bz2": bz2.compress}
SIZES = {"int": 8, "uint8": 1, "float32": 4}

# {"tokens": "ndarray", "kind": "uint8", "about": "str", "id": "int"}, four rows, without a limit of size.
TINY = zlib.decompress(
    base64.b85decode(
        "c-l>m%}xU$6ov1!jIIB*UAS<AY@Lm+8h1^63u7AWP)j;o3@|2Y-1s6sf)C+yRlO9NmgM7H!a0Y)0ANL26aaU`C-FtRi<xa&gHwewTWfss;+EeFADpPT&"
        "={h$q~kbXEuE9E;(_LzLupjX$Vc0*?YfTpQsY{KT`Kgu5wG7;1ly*m__*TN6_0cBm}jTF*A~f=9Aa*rk%7*_)IOFjq+g_tn2CkcMjIWrkr(B1$IS=*8;"
        ")UT4Oj_KKnJ?ONCD0X{L8DjWF_6h9?>KE#6Hm>uA))?W+zNod5}8~vmRyLJb03o<tCIr->c0_eO8_h&W59Z^6hBE"
    )
)
TINY_INDEX = {
    "shards": [
        {"column_encodings": ["str", "int", "uint8", "ndarray"], "column_names": ["about", "id", "kind", "tokens"],
         "column_sizes": [None, 8, 1, None], "compression": None, "format": "mds", "hashes": [],
         "raw_data": {"basename": "shard.00000.mds", "bytes": 415, "hashes": {}}, "samples": 4, "size_limit": None,
         "version": 2, "zip_data": None},
    ],
    "version": 2,
}  # fmt: skip


def tiny(place):
    place.mkdir(parents=True)
    (place / "index.json").write_text(json.dumps(TINY_INDEX))
    (place / "shard.00000.mds").write_bytes(TINY)


def write(place, columns, rows, per_shard, packing=None):
    """A directory of rows, {column: bytes}, with so many in a shard; columns are {name: encoding}."""
    place.mkdir(parents=True)
    names = sorted(columns)
    sizes = [SIZES.get(columns[name]) for name in names]
    entry = {"column_names": names, "column_encodings": [columns[name] for name in names], "column_sizes": sizes,
             "compression": packing and f"{packing}:3", "format": "mds", "hashes": [], "version": 2}  # fmt: skip
    shards = []
    for number, first in enumerate(range(0, len(rows), per_shard)):
        cut = []
        for row in rows[first : first + per_shard]:
            head = [len(row[name]) for name, size in zip(names, sizes, strict=True) if size is None]
            cut.append(np.array(head, np.uint32).tobytes() + b"".join(row[name] for name in names))
        about = json.dumps(entry).encode()
        offsets = np.cumsum([8 + 4 * len(cut) + len(about), *map(len, cut)])
        content = np.uint32(len(cut)).tobytes() + offsets.astype(np.uint32).tobytes() + about + b"".join(cut)
        name, packed = f"shard.{number:05}.mds", None
        raw = {"basename": name, "bytes": len(content), "hashes": {}}
        if packing is not None:
            name = f"{name}.{packing}"
            content = PACK[packing](content)
            packed = {"basename": name, "bytes": len(content), "hashes": {}}
        (place / name).write_bytes(content)
        shards.append(entry | {"samples": len(cut), "raw_data": raw, "zip_data": packed})
    (place / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))


def png(pixels):
    """The file of an image [height, width, 3]."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
