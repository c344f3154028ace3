"""Changes to the structure of a GGUF file: what its metadata and its tensors say of themselves."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import gguf

CODES = dict(zip(range(13), ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d"),
                 strict=True))  # fmt: skip
STRING, ARRAY = 8, 9
KINDS = list(range(13))
NUMBERS = [
    0, 1, -1, 2, 3, 4, 8, 10, 31, 32, 255, 10_000, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63,
    2**64 - 1, 0.0, -0.0, 0.5, 1.0, 1e-45, 3e38, 1e300, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
TEXTS = [
    *(b"", b"x", b"none", b"linear", b"yarn", b"llama", b"gpt2", b"gemma3", b"default", b"qwen2"),
    *(b"llama-bpe", b"\xff", b"a\nerror: forged", b"\x1b[2J", b"a" * 2000, "\u2581".encode()),
]
KEYS = [  # of every architecture
    key
    for group in vars(gguf.Keys).values()
    if isinstance(group, type)
    for key in vars(group).values()
    if isinstance(key, str) and key[:1] in "gtsqi{"
]
NAMES = [b"rope_freqs.weight", b"output.weight", b"rope_factors_long.weight", b"odd", b"",
         b"blk.0.ffn_gate_exps.weight", b"blk.0.attn_q.bias"]  # fmt: skip


@dataclass
class Entry:
    """One entry of metadata; the value of an array is the kind of its elements, and a list."""

    key: bytes
    kind: int
    value: Any


@dataclass
class Claim:
    """What the file says of one tensor; sizes as in the file, columns first."""

    name: bytes
    sizes: list[int]
    kind: int
    offset: int


@dataclass
class Parts:
    """A GGUF file taken apart; the counts are what its header says."""

    version: int
    entries: list[Entry]
    claims: list[Claim]
    data: bytes
    counts: list[int]
    alignment: int = 32


def taken_apart(data: bytes) -> Parts:
    """Read a good file."""
    at = 4

    def number(code: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(f"<{code}")
        return value

    def text() -> bytes:
        return bytes(number("B") for _ in range(number("Q")))

    def value(kind: int) -> Any:
        if kind == STRING:
            return text()
        if kind == ARRAY:
            inner = number("I")
            return [inner, [value(inner) for _ in range(number("Q"))]]
        return number(CODES[kind])

    version, num_claims, num_entries = (number(code) for code in "IQQ")
    entries, claims = list[Entry](), list[Claim]()
    for _ in range(num_entries):
        key, kind = text(), number("I")
        entries.append(Entry(key, kind, value(kind)))
    for _ in range(num_claims):
        name = text()
        sizes = [number("Q") for _ in range(number("I"))]
        claims.append(Claim(name, sizes, number("I"), number("Q")))
    start = -(-at // 32) * 32
    return Parts(version, entries, claims, data[start:], [num_claims, num_entries])


def put_together(parts: Parts) -> bytes:
    """Write a file of these parts, whatever it says about them."""
    head = (
        b"GGUF"
        + struct.pack("<I", parts.version)
        + b"".join(_number("Q", count) for count in parts.counts)
    )
    for entry in parts.entries:
        head += _text(entry.key) + struct.pack("<I", entry.kind) + _packed(entry.kind, entry.value)
    for claim in parts.claims:
        sizes = b"".join(_number("Q", size) for size in claim.sizes)
        head += _text(claim.name) + struct.pack("<I", len(claim.sizes)) + sizes
        head += struct.pack("<I", claim.kind) + _number("Q", claim.offset)
    return head + b"\0" * (-len(head) % parts.alignment) + parts.data


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _packed(kind: int, value: Any) -> bytes:
    """A value as bytes; one that does not fit its kind is cut to fit."""
    if kind == STRING:
        return _text(value if isinstance(value, bytes) else str(value).encode())
    if kind == ARRAY:
        inner, values = value if isinstance(value, list) else [STRING, [value]]
        return struct.pack("<IQ", inner, len(values)) + b"".join(_packed(inner, x) for x in values)
    return _number(CODES.get(kind, "I"), value if isinstance(value, int | float) else 7)


def _number(code: str, value: float) -> bytes:
    """A number in a struct code."""
    if code in ("f", "d"):
        try:
            return struct.pack(f"<{code}", value)
        except OverflowError:
            return struct.pack(f"<{code}", float("inf"))
    if code == "?":
        return struct.pack("<?", value)
    whole = int(value) if abs(value) < 2**65 else 0  # not of NaN or infinity either
    return (whole % 2**64).to_bytes(8, "little")[: struct.calcsize(code)]


def _odd(kind: int, random: Random) -> Any:
    """An odd value of a kind."""
    if kind == STRING:
        return random.choice(TEXTS)
    if kind == ARRAY:
        inner = random.choice([k for k in KINDS if k != ARRAY] * 3 + [ARRAY])
        return [inner, [_odd(inner, random) for _ in range(random.choice((0, 1, 2, 4)))]]
    return random.choice(NUMBERS)


def _key(parts: Parts, random: Random) -> bytes:
    """A key that files have."""
    prefixes = [x.value for x in parts.entries if x.key == b"general.architecture"]
    prefix = prefixes[0] if prefixes and isinstance(prefixes[0], bytes) else b"llama"
    return random.choice(KEYS).encode().replace(b"{arch}", prefix)


def _entry(parts: Parts, random: Random) -> None:
    """Change an entry of the metadata: its type, value or name; or exchange, drop or add one."""
    entry, other = random.choice(parts.entries), random.choice(parts.entries)
    before = len(parts.entries)
    match random.randrange(10):
        case 0 | 1:
            entry.kind = random.choice([*KINDS, 13, 2**32 - 1])
            if random.random() < 0.7:
                entry.value = _odd(entry.kind, random)
        case 2 | 3:
            entry.value = _odd(entry.kind, random)
        case 4:
            entry.key = _key(parts, random)
        case 5:
            entry.kind, other.kind = other.kind, entry.kind
            entry.value, other.value = other.value, entry.value
        case 6 if before > 1:
            parts.entries.remove(entry)
        case 7:
            parts.entries.append(entry)
        case _:
            kind, at = random.choice(KINDS), random.randrange(before + 1)
            parts.entries.insert(at, Entry(_key(parts, random), kind, _odd(kind, random)))
    parts.counts[1] += len(parts.entries) - before


def _array(parts: Parts, random: Random) -> None:
    arrays = [x.value for x in parts.entries if x.kind == ARRAY and isinstance(x.value, list)]
    if not arrays:
        return
    array = random.choice(arrays)
    inner, values = array
    how = random.randrange(6)
    if how == 0:
        array[1] = values[: random.randrange(len(values) + 1)]
    elif how == 1:
        array[1] = values + values[: random.choice((1, 2, len(values)))]
    elif how == 2:
        array[0] = random.choice(KINDS)
    elif how == 3 and len(values) > 1:
        a, b = (random.randrange(len(values)) for _ in range(2))
        values[a], values[b] = values[b], values[a]
    elif values:
        for _ in range(random.choice((1, 1, 8))):
            values[random.randrange(len(values))] = _odd(inner, random)


def _alignment(parts: Parts, random: Random) -> None:
    value = random.choice((0, 1, 3, 8, 16, 64, 128, 65536, 2**31))
    parts.entries.append(Entry(b"general.alignment", random.choice((4, 4, 4, 10, 5)), value))
    parts.counts[1] += 1
    if 8 <= value <= 128 and random.random() < 0.7:
        parts.alignment = value


def _header(parts: Parts, random: Random) -> None:
    """Change the version, a count of the header, or the data behind it."""
    match random.randrange(3):
        case 0:
            parts.version = random.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1))
        case 1:
            at = random.randrange(2)
            near = (parts.counts[at] - 1) % 2**64, parts.counts[at] + 1
            parts.counts[at] = random.choice((0, 1, *near, 2**16, 2**32, 2**63, 2**64 - 1))
        case _:
            cut = parts.data[: random.randrange(len(parts.data) + 1)]
            parts.data = random.choice((parts.data[:-1], cut, parts.data + b"\xff" * 64))


def _tensor(parts: Parts, random: Random) -> None:
    claim, other = random.choice(parts.claims), random.choice(parts.claims)
    how = random.randrange(6)
    if how == 0:
        claim.kind = random.choice((*range(42), 2**32 - 1))
    elif how == 1:
        at = random.randrange(len(claim.sizes))
        size = claim.sizes[at]
        claim.sizes[at] = random.choice((0, 1, size + 1, size * 2, size // 2, 2**40, 2**64 - 1))
    elif how == 2:
        claim.sizes = random.choice(
            (claim.sizes[::-1], [1, *claim.sizes], [*claim.sizes, 1], claim.sizes[1:], other.sizes)
        )
    elif how == 3:
        near = other.offset, claim.offset + 32, claim.offset + 1, len(parts.data)
        claim.offset = random.choice((0, *near, 2**62, 2**64 - 32))
    elif how == 4:
        claim.name = random.choice((other.name, *NAMES))
    else:
        claim.name, other.name = other.name, claim.name


def _no_tensor(parts: Parts, random: Random) -> None:
    del parts.claims[random.randrange(len(parts.claims))]
    parts.counts[0] -= 1


CHANGES: tuple[Callable[[Parts, Random], None], ...] = (
    *(_entry, _entry, _entry, _entry, _entry, _array, _array, _alignment),
    *(_header, _header, _tensor, _tensor, _tensor, _no_tensor),
)


def gguf_structure(data: bytes, random: Random) -> bytes:
    """Change what a GGUF file says about its metadata and tensors, and write it whole again."""
    parts = taken_apart(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        random.choice(CHANGES)(parts, random)
        if not parts.claims or not parts.entries:
            break
    return put_together(parts)
