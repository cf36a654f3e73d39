"""Reading files that torch.save wrote: their sizes before their contents, since they can come from someone else."""

import os
import pickletools
import re
import zipfile
from typing import Any, BinaryIO

import torch

# In the pickles of tensors. `weights_only` allows more, such as bytearray(n), whose size the file's does not limit.
ALLOWED_GLOBALS = re.compile(r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_(tensor_v2|parameter)")
LEGACY_PICKLES = 5  # in the old format, at the start: magic number, version, system, objects, names of storages


def load_tensors(file: BinaryIO, max_bytes: int | None = None) -> Any:
    """The object in a file of torch.save, with its tensors on the CPU.

    max_bytes: of the contents; by default the size of the file, since torch.save does not compress.
    Raises ValueError, before memory is allocated, if the contents are larger, and what torch.load raises.
    """
    size = contents = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            contents = max(size, sum(entry.file_size for entry in entries))
            _require_at_most(size if max_bytes is None else max_bytes, contents)
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    with archive.open(entry) as pickle:
                        _check_pickle(pickle)
    else:
        _require_at_most(size if max_bytes is None else max_bytes, contents)
        file.seek(0)
        for _ in range(LEGACY_PICKLES):
            _check_pickle(file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _require_at_most(max_bytes: int, contents: int) -> None:
    if contents > max_bytes:
        raise ValueError(f"its contents take {contents:,} bytes, more than the {max_bytes:,} that are possible")


def _check_pickle(file: Any) -> None:
    """Raise ValueError if a pickle, which is not executed, refers to anything but tensors and OrderedDict."""
    for opcode, argument, _ in pickletools.genops(file):
        if "GLOBAL" in opcode.name and not ALLOWED_GLOBALS.fullmatch(str(argument)):  # STACK_GLOBAL has no argument
            raise ValueError(f"it contains {argument or opcode.name} in addition to tensors")
