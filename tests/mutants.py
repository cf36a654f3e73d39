"""Damaged copies of valid files, of many kinds.

The generators yield pairs of a description and the content, or a function without arguments that makes a large content.
"""

import gzip
import io
import json
import os
import random
import struct
import warnings
import zipfile

CELLS = (
    b"256", b"999999999999999999999999", b"-1", b"+7", b"1e2", b"5.0", b"nan", b"NaN", b"inf", b"-inf", b"", b" ",
    b" 5", b"5 ", b"0x10", b"1_0", b'"5"', b"'5'", b"five", b"\xd9\xa5", b"\x00", b"5\x00", b"0005", b"null", b"None",
    b"TRUE", b"=1+1", b"5\t", b"\x1b[31m5",
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "cp500")  # the last: EBCDIC


def mutate_bytes(content, count=40, seed=0):
    """What can happen to any file: flipped bits, truncation, parts that are repeated, removed or zeroed, additions."""
    generator = random.Random(seed)
    for number in range(count):
        at = generator.randrange(len(content))
        flipped = content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :]
        yield f"bit flipped at {at} ({number})", flipped
    for tenth in range(10):
        yield f"cut at {tenth}0%", content[: len(content) * tenth // 10]
    for cut in (1, 2, 3):
        yield f"cut {cut} before the end", content[:-cut]
    for _ in range(5):
        start, end = sorted(generator.sample(range(len(content)), 2))
        yield f"{start} to {end} removed", content[:start] + content[end:]
        yield f"{start} to {end} repeated", content[:end] + content[start:]
        yield f"{start} to {end} zero", content[:start] + bytes(end - start) + content[end:]
    yield "repeated", content * 2
    yield "a zero before", b"\0" + content
    yield "a zero after", content + b"\0"
    yield "zeros after", content + bytes(10_000)
    yield "all zeros", bytes(len(content))
    yield "noise", generator.randbytes(len(content))
    yield "HTML", b"<!DOCTYPE html><html><body>Please log in</body></html>"


def mutate_table(content, columns):
    """A CSV with other bytes, cells, rows, columns, separators, encodings or line ends."""
    yield from mutate_bytes(content)
    lines = content.split(b"\n")[:-1]
    middle = len(lines) // 2

    def join(lines):
        return b"\n".join(lines) + b"\n"

    for cell in CELLS:
        for column in (0, 1, columns - 1):
            cells = lines[middle].split(b",")
            cells[column] = cell
            yield f"{cell!r} in column {column}", join([*lines[:middle], b",".join(cells), *lines[middle + 1 :]])
        names = lines[0].split(b",")
        yield f"{cell!r} in the header", join([b",".join([cell, *names[1:]]), *lines[1:]])
    yield "a row twice", join([*lines, lines[-1]])
    yield "a row missing", join(lines[:middle] + lines[middle + 1 :])
    yield "two rows exchanged", join([lines[0], lines[2], lines[1], *lines[3:]])
    yield "the header twice", join([lines[0], *lines])
    yield "the header in the middle", join([*lines[:middle], lines[0], *lines[middle:]])
    yield "the header alone", join(lines[:1])
    yield "no header", join(lines[1:])
    yield "rows before the header", join([lines[1], lines[0], *lines[2:]])
    yield "a blank line in the middle", join([*lines[:middle], b"", *lines[middle:]])
    yield "a line of spaces", join([*lines[:middle], b"   ", *lines[middle:]])
    yield "blank lines at the end", content + b"\n\n\r\n"
    yield "a blank line first", b"\n" + content
    yield "one column more", join([line + b",0" for line in lines])
    yield "one column less", join([line.rsplit(b",", 1)[0] for line in lines])
    yield "one cell more in a row", join([*lines[:middle], lines[middle] + b",0", *lines[middle + 1 :]])
    yield "commas at the ends", join([line + b"," for line in lines])
    yield "an index column", join([b"%d,%s" % pair for pair in enumerate(lines)])
    for name, separator in (("tabs", b"\t"), ("semicolons", b";"), ("spaces", b" "), ("two commas", b",,")):
        yield name, content.replace(b",", separator)
        yield (
            f"{name} in a row",
            join([*lines[:middle], lines[middle].replace(b",", separator), *lines[middle + 1 :]]),
        )
    for name, end in (("CR", b"\r"), ("CRLF", b"\r\n"), ("CRCRLF", b"\r\r\n"), ("NUL", b"\0"), ("form feeds", b"\f")):
        yield f"{name} for line ends", content.replace(b"\n", end)
    yield "CRLF in one row", join([*lines[:middle], lines[middle] + b"\r", *lines[middle + 1 :]])
    yield "no line end at the end", content[:-1]
    yield "everything quoted", join([b",".join(b'"%s"' % cell for cell in line.split(b",")) for line in lines])
    yield "one field quoted over two rows", join([*lines[:middle], b'"' + lines[middle], lines[middle + 1] + b'"'])
    text = content.decode("ascii")
    for encoding in ENCODINGS:
        yield encoding, text.encode(encoding)
    yield "a byte order mark", b"\xef\xbb\xbf" + content
    yield "two byte order marks", b"\xef\xbb\xbf" * 2 + content
    yield "one row of a million cells", lines[0] + b"\n" + b"0," * 1_000_000 + b"\n"
    yield "a million empty rows", lines[0] + b"\n" + b"\n" * 1_000_000 + lines[1]
    yield "a comment", b"# downloaded today\n" + content


def mutate_zip(tables):
    """A zip with other bytes, or members that are missing, repeated, renamed, encrypted, or lead elsewhere."""
    yield from mutate_bytes(make_zip(tables))
    for name in tables:
        yield f"no {name}", make_zip({table: tables[table] for table in tables if table != name})
        yield f"{name} empty", make_zip(tables | {name: b""})
        yield f"{name} twice", make_zip([*tables.items(), (name, tables[name])])
        yield f"{name} in two folders", make_zip([*tables.items(), (f"old/{name}", tables[name])])
    for name in ("../train.csv", "/train.csv", "a/../../train.csv", "..\\train.csv", "C:\\train.csv", "C:/train.csv"):
        moved = {name if table == "train.csv" else table: content for table, content in tables.items()}
        yield f"train.csv as {name}", make_zip(moved)
    for name in ("../evil", "/etc/evil", "a/../../evil"):
        yield f"{name} beside", make_zip([*tables.items(), (name, b"evil")])
    yield "a link for a table", make_zip(tables, links={"train.csv": b"/etc/passwd"})
    yield "a link beside", make_zip([*tables.items()], links={"evil": b"/etc"})
    yield "a zip of the zip", make_zip({"all.zip": make_zip(tables)})
    yield "a bomb of zeros", lambda: make_zip(tables | {"train.csv": bytes(50_000_000)})
    rows = tables["train.csv"].split(b"\n")
    many_rows = rows[0] + b"\n" + (b"5" + b",0" * 784 + b"\n") * 20_000
    yield "a bomb of rows", lambda: make_zip(tables | {"train.csv": many_rows})
    yield "folders alone", make_zip({"train.csv/": b"", "test.csv/": b"", "sample_submission.csv/": b""})
    yield "empty zip", make_zip({})
    packed = bytearray(make_zip(tables))
    at = packed.rindex(b"PK\x01\x02")
    packed[at + 8] |= 1
    yield "marked as encrypted", bytes(packed)
    packed[at + 10 : at + 12] = b"\x63\x00"
    yield "an unknown method", bytes(packed)
    packed = bytearray(make_zip(tables))
    at = packed.index(b"PK\x01\x02")
    packed[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    yield "a size that lies", bytes(packed)
    packed[at + 24 : at + 28] = struct.pack("<I", 10)
    yield "a size that is too small", bytes(packed)


def make_zip(tables, links=()):
    """A zip of names and contents (pairs may repeat a name), and of links with their targets."""
    buffer = io.BytesIO()
    pairs = tables.items() if isinstance(tables, dict) else tables
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in pairs:
            if name not in links:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # for a name that occurs twice
                    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        for name, target in dict(links).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
    return buffer.getvalue()


def mutate_gzip(content):
    """A gzip file with other bytes or content, and decompression bombs."""
    yield from mutate_bytes(gzip.compress(content))
    yield "not compressed", content
    yield "compressed twice", gzip.compress(gzip.compress(content))
    yield "two parts, each compressed", gzip.compress(content[:1000]) + gzip.compress(content[1000:])  # is valid
    yield "a bomb of zeros", lambda: gzip.compress(bytes(200_000_000))
    header = content.split(b"\n")[0]
    yield "a bomb after the header", lambda: gzip.compress(header + b"\n" + bytes(200_000_000))


def mutate_idx(content):
    """An idx file with other bytes, other magic numbers, or sizes that do not match its data."""
    yield from mutate_bytes(content)
    dimensions = content[3]
    for magic in (b"\0\0\x0d\3", b"\0\0\x08\2", b"\0\0\x08\0", b"\0\0\x08\xff", b"\1\0\x08\3", b"\x08\0\0\3", b"RIFF"):
        yield f"magic {magic.hex()}", magic + content[4:]
    for at in range(dimensions):
        for size in (0, 1, 27, 29, 2**31, 2**32 - 1):
            start = 4 + 4 * at
            yield f"size {size} in dimension {at}", content[:start] + struct.pack(">I", size) + content[start + 4 :]
    yield "the magic number alone", content[:4]
    yield "the header alone", content[: 4 + 4 * dimensions]
    yield "a bomb in gzip", lambda: gzip.compress(content[:16] + bytes(1 << 30), 1)


def mutate_toml(content):
    """A recipe with other bytes, and with every value replaced by others."""
    yield from mutate_bytes(content)
    lines = content.decode().splitlines()
    values = (
        "nan",
        "inf",
        "-1",
        "1e400",
        "99999999999999999999",
        "true",
        '"x"',
        "[]",
        "{}",
        "1979-05-27",
        "''",
        "0x10",
    )
    values += ("[" * 2000 + "]" * 2000, '"' + "x" * 100_000 + '"')
    for at, line in enumerate(lines):
        if "=" in line and not line.startswith("#"):
            key = line.split("=")[0]
            for value in values:
                recipe = "\n".join([*lines[:at], f"{key}= {value}", *lines[at + 1 :]])
                yield f"{key.strip()} = {value[:20]}", recipe.encode()
            yield f"{key.strip()} twice", "\n".join([*lines[: at + 1], line, *lines[at + 1 :]]).encode()
            yield f"{key.strip()} misspelled", "\n".join([*lines[:at], "x" + line, *lines[at + 1 :]]).encode()
    for encoding in ENCODINGS:
        yield encoding, content.decode().encode(encoding)
    yield "too long", content + b"# " + b"x" * 2_000_000
    yield "a section twice", content + b"\n[train]\nepochs = 3\n"
    yield "an unknown section", content + b"\n[trian]\nepochs = 3\n"
    yield "dotted keys", content + b'\ntrain.epochs = 3\n"a.b".c = 1\n'
    yield "JSON", json.dumps({"train": {"epochs": 3}}).encode()


def mutate_json(content):
    """A JSON object with other bytes, and with every value replaced by others."""
    yield from mutate_bytes(content)
    for path in _paths(json.loads(content)):
        *parents, key = path
        name = "/".join(map(str, path))
        for value in (None, 5, -1, 1e300, "x", "../../../etc/passwd", "", [], {}, [[]], True):
            whole, parent = _load(content, parents)
            parent[key] = value
            yield f"{name} = {value!r}", json.dumps(whole).encode()
        whole, parent = _load(content, parents)
        del parent[key]
        yield f"{name} missing", json.dumps(whole).encode()
    for name, text in (("a list", "[]"), ("a number", "5"), ("NaN", "NaN"), ("deep", "[" * 100_000), ("text", '"x"')):
        yield name, text.encode()


def _load(content, keys):
    """The object in JSON text, and the object inside it that the keys lead to."""
    whole = inner = json.loads(content)
    for key in keys:
        inner = inner[key]
    return whole, inner


def _paths(value, before=()):
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*before, key)
        yield from _paths(inner, (*before, key))


def obstacles():
    """What may be in the place of a file: functions that create it at a path."""

    def folder(path):
        path.mkdir()

    def broken_link(path):
        path.symlink_to("/nowhere/at/all")

    def link_to_itself(path):
        path.symlink_to(path.name)

    def pipe(path):
        os.mkfifo(path)

    def empty(path):
        path.write_bytes(b"")

    def sparse(path):
        with open(path, "wb") as file:
            file.truncate(10 << 30)

    def nothing(path):
        pass

    return [folder, broken_link, link_to_itself, pipe, empty, sparse, nothing]


def replace(path, create):
    """Delete the file or empty folder at `path`, and call `create(path)`."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    create(path)
