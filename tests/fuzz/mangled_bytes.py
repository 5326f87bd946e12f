"""Bytes spoiled without a look at what they mean."""

import random
from collections.abc import Callable

Spoil = Callable[[random.Random, bytes], bytes]

EXTREMES = (
    b"\x00" * 8,
    b"\xff" * 8,
    b"\xff" * 9 + b"\x01",
    b"\x7f" + b"\xff" * 7,
    b"\x80" + b"\0" * 7,
)


def truncated(chance: random.Random, data: bytes) -> bytes:
    """Cut the end off, or the start."""
    at = chance.randrange(len(data) + 1)
    return data[:at] if chance.random() < 0.8 else data[at:]


def flipped(chance: random.Random, data: bytes) -> bytes:
    """Flip some bits."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwritten(chance: random.Random, data: bytes) -> bytes:
    """Write an extreme number, or noise, over some bytes."""
    new = chance.choice((*EXTREMES, chance.randbytes(chance.randrange(1, 64))))
    at = chance.randrange(len(data))
    return data[:at] + new + data[at + len(new) :]


def spliced(chance: random.Random, data: bytes) -> bytes:
    """Put one piece of the data, or noise, in another place of it."""
    start = chance.randrange(len(data))
    piece = data[start : start + chance.choice((1, 8, 100, 5000))]
    at = chance.randrange(len(data) + 1)
    new = chance.choice((piece, chance.randbytes(len(piece)), piece * 20))
    return data[:at] + new + data[at:]


def shortened(chance: random.Random, data: bytes) -> bytes:
    """Take a piece out of the middle."""
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.choice((1, 4, 30, 1000)) :]


WAYS: tuple[Spoil, ...] = (truncated, flipped, overwritten, spliced, shortened)


def mangle(chance: random.Random, data: bytes) -> bytes:
    """Spoil bytes in one or two ways."""
    for _ in range(chance.choice((1, 1, 2))):
        data = chance.choice(WAYS)(chance, data) or b"\0"
    return data
