"""Changes of files without a trace: size, time and inode stay."""

import json
import os


def flip(path):
    """Change a bit in the middle of a file, as a fault of the disk does."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert all(getattr(after, name) == getattr(before, name) for name in ("st_size", "st_mtime_ns", "st_ino"))


def list_outputs(workspace):
    """The files that manifests list, with their hashes, by folder."""
    manifests = {path.parent: json.loads(path.read_bytes()) for path in workspace.rglob("manifest.json")}
    return {
        folder: {folder / name: digest for name, digest in manifest["outputs"].items()}
        for folder, manifest in manifests.items()
    }


def record_fingerprints(workspace):
    """Record size, time and inode of the files of a copied workspace, as if they had been written there."""
    for folder, outputs in list_outputs(workspace).items():
        context, files = json.loads((folder / "context.json").read_bytes()), {}
        for path, digest in outputs.items():
            stat = path.stat()
            files[os.path.relpath(path, folder)] = [stat.st_size, stat.st_mtime_ns, stat.st_ino, digest]
        (folder / "context.json").write_text(json.dumps(context | {"files": files}))
    return workspace
