"""Changes that make good input hostile: of bytes, JSON, headers, kinds of files, and options."""

import copy
import json
import os
import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

BIG = [2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400]
STRINGS = [
    "",
    "x",
    "\x1b[2J\x1b]0;t\x07",
    "a\nerror: forged",
    "\u202e\u2066",
    "\ud800",
    "\x00",
    "../../x",
    "/etc/passwd",
    "a" * 5000,
    "<script>alert(1)</script>",
    "nan",
    "1e999",
    "%s{}{0}",
    "blocks.0",
    "..",
]
ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    0.5,
    -0.0,
    1e-300,
    1e300,
    float("inf"),
    float("nan"),
    *BIG,
    *STRINGS,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [2**62, 0, 7],
    [-1, 4],
    list(range(300)),
]


def flip(data: bytes, random: Random) -> bytes:
    """Flip some bits."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def flip_front(data: bytes, random: Random) -> bytes:
    """Flip bits of the first 256 bytes, where headers are."""
    return flip(data[:256], random) + data[256:]


def splice(data: bytes, random: Random) -> bytes:
    """Cut, repeat, insert or overwrite somewhere."""
    a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
    piece = random.choice(
        (b"\x00", b"\xff" * 8, b"\x1b[31m", random.randbytes(16), b"\n" * 1000)
    )
    value = random.choice((0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1))
    return random.choice(
        (
            data[: random.choice((0, 1, 7, 8, 9, a))],
            data[:a] + data[a + random.choice((1, 4, 8, 100)) :],
            data[:b] + data[a:],
            data[:a] + piece + data[a:],
            data[:a] + struct.pack("<Q", value) + data[a + 8 :],
        )
    )


def nest(data: bytes, random: Random) -> bytes:
    """Nest JSON very deep, alone or in an object."""
    depth = random.choice((70, 900, 5000, 200_000))
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    inner = (
        opening * depth + random.choice(("1", "")) + closing * random.choice((depth, 0))
    )
    return random.choice((inner, '{"model_type": ' + inner + "}")).encode()


def other_kind(data: bytes, random: Random) -> bytes:
    """Put something else in the place of the file."""
    return random.choice(
        (
            b"",
            b"\x00" * 100,
            b"{}",
            b"[]",
            b"null",
            b"1",
            b'"x"',
            b"\xef\xbb\xbf{}",
            b"\xff\xfe\xff",
            b"PK\x03\x04",
            b"GGUF" + b"\xff" * 40,
            b"\x93NUMPY\x01\x00\xff\xff",
            b"\x80\x04K\x01.",
            b"\n" * 10_000,
            b"," * 10_000,
            b"9" * 5000,
        )
    )


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    flip,
    flip_front,
    splice,
    splice,
    splice,
    splice,
    splice,
    nest,
    other_kind,
)
KINDS: dict[
    str, Callable[[Path, Path], object]
] = {  # what is at a path, in place of a good file
    "pipe": lambda path, good: os.mkfifo(path),
    "socket": lambda path, good: os.mknod(path, stat.S_IFSOCK | 0o600),
    "folder": lambda path, good: path.mkdir(),
    "loop": lambda path, good: path.symlink_to(path.name),
    "link to nothing": lambda path, good: path.symlink_to("nothing"),
    "link": lambda path, good: path.symlink_to(good),
    "link to an endless device": lambda path, good: path.symlink_to("/dev/zero"),
    "link to an empty device": lambda path, good: path.symlink_to("/dev/null"),
    "link to a terminal": lambda path, good: path.symlink_to("/dev/tty"),
    "sparse": lambda path, good: sparse(path, good),
}


def sparse(path: Path, good: Path) -> None:
    """A file that begins as it should and goes on with zeros, which take no room."""
    path.write_bytes(good.read_bytes())
    os.truncate(
        path, 1 << 31 if good.suffix == ".gguf" else 1 << 40
    )  # cases digest GGUF files


def changed_json(value: Any, random: Random) -> Any:
    """A document with one or a few changes: other values, lost, added, renamed, doubled parts."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if not isinstance(value, dict | list) or not value or random.random() < 0.02:
            value = copy.deepcopy(random.choice(ODD))
        else:
            _change_inside(value, random)
    return value


def _change_inside(holder: Any, random: Random) -> None:
    """Change something somewhere below a list or an object."""
    while True:
        keys = [*(holder if isinstance(holder, dict) else range(len(holder)))]
        key = random.choice(keys)
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or random.random() > 0.85:
            break
        holder = inner
    odd = copy.deepcopy(random.choice(ODD))  # the next change may be inside of it
    other = copy.deepcopy(random.choice([holder[k] for k in keys]))
    how = random.choice(("lose", "rename", "add", "number", "swap", "odd"))
    if how == "lose":
        del holder[key]
    elif how == "rename" and isinstance(holder, dict):
        holder[random.choice(STRINGS)] = holder.pop(key)
    elif how == "add" and isinstance(holder, dict):
        holder[random.choice(STRINGS)] = odd
    elif how == "add":
        holder.insert(random.randrange(len(holder) + 1), other)
    elif (
        how == "number"
        and isinstance(inner, int | float)
        and not isinstance(inner, bool)
    ):
        half = inner // 2 if isinstance(inner, int) else inner / 2
        holder[key] = random.choice(
            (-inner, inner + 1, inner * 2, half, str(inner), [inner])
        )
    else:
        holder[key] = other if how == "swap" else odd


def json_bytes(data: bytes, random: Random) -> bytes:
    """Change a JSON document."""
    return json.dumps(changed_json(json.loads(data), random)).encode()


def line_bytes(data: bytes, random: Random) -> bytes:
    """Change a line of JSON lines."""
    lines = data.splitlines()
    at = random.randrange(len(lines))
    lines[at] = json_bytes(lines[at], random)
    return b"\n".join(lines)


def tensor_bytes(data: bytes, random: Random) -> bytes:
    """Change the header of a safetensors file, or put NaN or an infinity into a tensor."""
    (length,) = struct.unpack("<Q", data[:8])
    start, old = 8 + length, data[8 : 8 + length]
    if random.random() < 2 / 3:
        new = json_bytes(old, random)
        return struct.pack("<Q", len(new)) + new + data[start:]
    entry = random.choice(
        [x for name, x in json.loads(old).items() if name != "__metadata__"]
    )
    odd = {
        "F16": b"\x00\x7c",
        "BF16": b"\x80\x7f",
        "F32": b"\x00\x00\x80\x7f",
        "F64": b"\x00" * 6 + b"\xf0\x7f",
    }.get(entry["dtype"], b"\xff")
    value = random.choice((odd, odd[:-1] + bytes([odd[-1] | 0x80]), b"\xff" * len(odd)))
    begin, end = entry["data_offsets"]
    at = start + begin + random.randrange((end - begin) // len(odd)) * len(odd)
    return data[:at] + value + data[at + len(odd) :]


def protobuf_bytes(data: bytes, random: Random) -> bytes:
    """Change what an ONNX graph says: a name or text, or a byte that is a tag, length or number."""
    texts = [
        (m.start(), len(m[0])) for m in re.finditer(rb"[A-Za-z_./0-9]{3,40}", data)
    ]
    for _ in range(random.choice((1, 1, 2, 4))):
        at, length = random.choice(texts)
        how = random.randrange(4)
        if how == 0:
            other, other_length = random.choice(texts)
            new = (data[other : other + other_length] * length)[:length]
        elif how == 1:
            odd = random.choice(STRINGS).encode("utf-8", "replace") or b" "
            new = (odd * length)[:length]
        else:
            at = max(
                0, at + random.choice((-3, -2, -1, length, length + 1, length + 2))
            )
            new, length = bytes([random.choice((0, 1, 2, 7, 16, 127, 255))]), 1
        data = data[:at] + new + data[at + length :]
    return data


INTEGERS = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    *map(str, BIG),
    "1e3",
    "0x10",
    "\uff11",
    "1_0",
    "",
    "x",
    "nan",
]
NUMBERS = [
    *INTEGERS,
    "inf",
    "-inf",
    "1e-400",
    "1e400",
    "0.5",
    "-0.0",
    "1e-7",
    "1e38",
    "1,1",
    ",",
    "0.1,,2",
]
_PASSED = [
    text.replace("\x00", "").replace("\ud800", "") for text in STRINGS
]  # as words
TEXTS = [*_PASSED, "=", "a=b=c", "m=5", "2:4", "5:4", "0:0", "9" * 400 + ":1"]
SIZES = ["1", "0", "-1", "1G", "1T", "nanG", "1e400", "99999999999T", "G", ""]
PATHS = [
    "",
    ".",
    "/",
    "..",
    "absent",
    "absent/deep",
    "model",
    "model/model.safetensors",
    "model/config.json",
    "text.txt",
    "scores.json",
    "/dev/zero",
    "/dev/null",
    "/dev/full",
    "loop",
    "/proc/self/mem",
    "pipe",
    "a" * 246,
    "a" * 300,
    "x\x1b[2Jy",
    "x\nerror: forged",
    "link.json",
    "out.json",
    "out.onnx",
    "out",
    "case",
    "case/case.json",
    "ids.npy",
    "base.json",
    "graph.onnx",
    "pruned",
    'x" onload="alert(1)',
    "<b>|$x^2$",
    "seeds.txt",
]
