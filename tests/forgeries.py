"""Forged files of a workspace: valid JSON, arrays and checksums, with entries of other types and lengths."""

import copy
import hashlib
import io
import json

import numpy as np
import safetensors.torch
import torch

DEEP = "[" * 400 + "]" * 400
NAMES = (
    "", ".", "..", "a/b", "../../../outside", "../../outside/secret.txt", "../../arrays/../../outside/secret.txt",
    "/etc/hostname", "nul\0", "\ud800", "\udcff", "x" * 300, "x" * 100_000, "\x1b[31mred\n", "true", "0" * 64,
)  # fmt: skip
NUMBERS = (0, 1, -1, 0.5, -0.0, 2**63, -(10**30), 10**400, float("inf"), float("nan"))
VALUES = (
    None, True, *NUMBERS, *NAMES, [], [None], [1, 2], [[]], ["x"] * 20_000, {}, {"": None}, {"networks": 5},
    dict.fromkeys(NAMES, "0" * 64), dict.fromkeys(map(str, range(20_000)), 1), json.loads(DEEP),
)  # fmt: skip

WHOLE = (None, 5, "text", [], [{}], {}, {"folders": None}, {"networks": 5}, {"outputs": []}, json.loads(DEEP))


def forge_json(value, random):
    """A description and a forged value: one entry is replaced, removed or joined by another; or all of it is."""
    path = random.choice([(), *list_paths(value)])
    where = "/".join(map(str, path))
    if not path:
        other = random.choice(WHOLE)
        return f"all of it {shorten(other)}", other
    kind = random.randrange(6)
    if kind == 0:
        return f"{where} removed", change(value, path)
    if kind == 1 and isinstance(path[-1], str):
        name = random.choice((*NAMES, path[-1] * 2))
        return f"{where} beside {shorten(name)}", change(value, (*path[:-1], name), get(value, path))
    other = random.choice(VALUES)
    return f"{where} = {shorten(other)}", change(value, path, other)


def list_paths(value, path=()):
    """The paths to all entries; of a list, to the first and the last item."""
    if path:
        yield path
    if isinstance(value, dict):
        for name in value:
            yield from list_paths(value[name], (*path, name))
    elif isinstance(value, list) and value:
        for at in {0, len(value) - 1}:
            yield from list_paths(value[at], (*path, at))


def get(value, path):
    for part in path:
        value = value[part]
    return value


def change(value, path, *other):
    """A copy in which the entry at a path has another value, or is removed."""
    changed = copy.deepcopy(value)
    parent = get(changed, path[:-1])
    if other:
        parent[path[-1]] = other[0]
    else:
        del parent[path[-1]]
    return changed


def shorten(value):
    text = ascii(value)
    return text if len(text) < 40 else f"{text[:30]}... ({len(text)})"


def forge_array(array):
    """Yield (description, content of an .npy file) with other types, shapes and values."""
    others = [array.astype(dtype) for dtype in ("float64", "int8", "complex64", "U3", "bool", ">i8")]
    others += [array[:0], array[:1], array[..., None], array.ravel(), array[None], np.concatenate([array, array])]
    others += [np.array(5), np.full_like(array, 200), np.full_like(array, 10), array[::-1]]
    if array.dtype != np.uint8:
        others += [np.full_like(array, -1), np.full_like(array, 2**62)]
    for other in others:
        yield f"{other.dtype} {other.shape} of {other.ravel()[:1]}", as_npy(other)
    yield "objects", as_npy(np.array([{}, None], object))
    archive = io.BytesIO()
    np.savez(archive, array)
    yield "an archive", archive.getvalue()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 28, 28), }"
    yield "a shape that is too large", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    for content in (
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\x05\x00[[[[[",
        b"PK\x03\x04",
        b"\x80\x04K\x05.",
        bytes(5000),
    ):
        yield repr(content[:12]), content


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def forge_weights(content, random):
    """Yield (description, content of a weights file) with other metadata or tensors."""
    tensors = safetensors.torch.load(content)
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["metadata"])
    for _ in range(20):
        description, other = forge_json(metadata, random)
        yield description, safetensors.torch.save(tensors, {"metadata": json.dumps(other)})
    layers = dict(metadata, model=metadata["model"] | {"layers": ["dense 9999"] * 900})
    yield "a huge network", safetensors.torch.save(tensors, {"metadata": json.dumps(layers)})
    yield "no metadata", safetensors.torch.save(tensors)
    yield "no JSON", safetensors.torch.save(tensors, {"metadata": "{"})
    first = next(iter(tensors))
    same = {"metadata": json.dumps(metadata)}
    yield "no tensors", safetensors.torch.save({}, same)
    yield "one more", safetensors.torch.save(tensors | {"more": torch.zeros(1)}, same)
    yield "another shape", safetensors.torch.save(tensors | {first: torch.zeros(3, 3)}, same)
    yield "another type", safetensors.torch.save({name: t.to(torch.int8) for name, t in tensors.items()}, same)
    yield "not numbers", safetensors.torch.save({name: t.float() * torch.nan for name, t in tensors.items()}, same)
    yield "a pickle", b"\x80\x04K\x05."
    yield "empty", b""


def forge_history(content):
    """Yield (description, content of a history)."""
    header, *rows = content.decode().splitlines()
    for cell in ("", "nan", "inf", "-1", "²", "1e999", "x", "9" * 5000, '"', "\0", "1_0", "True"):
        for column in range(len(header.split(","))):
            cells = rows[0].split(",")
            cells[column] = cell
            yield f"{cell[:9]!r} in column {column}", "\n".join([header, ",".join(cells), *rows[1:], ""]).encode()
    for name in ("", "epoch", "x" * 100_000, "\0"):
        yield f"a column {name[:9]!r}", "\n".join([f"{header},{name}", *rows, ""]).encode()
    yield "no rows", f"{header}\n".encode()
    yield "more rows", "\n".join([header, *rows * 3, ""]).encode()
    yield "longer rows", "\n".join([header, *(f"{row},1,2" for row in rows), ""]).encode()
    yield "shorter rows", "\n".join([header, *(row.rpartition(",")[0] for row in rows), ""]).encode()
    yield "not UTF-8", b"\xff\xfe"
    yield "empty", b""


def seal(manifest):
    """The content of a manifest with a valid checksum, if it is an object."""
    if isinstance(manifest, dict):
        others = {name: value for name, value in manifest.items() if name != "seal"}
        manifest = others | {"seal": hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()}
    return as_json(manifest)


def as_json(value):
    return json.dumps(value).encode()
