"""Stored tensors spoiled: their sizes, types, contents and where those lie."""

import random

from onnx import TensorProto

from tests.fuzz import words

LOCATIONS = (
    "../outside/weights",
    "/etc/passwd",
    "weights.bin/../../outside/x",
    "",
    ".",
    "nothing.bin",
    "link.bin",
    "\x1b[2J",
    "a" * 300,
    "/dev/zero",
    "/proc/self/mem",
    "net.onnx",
    "C:\\x",
    "file:///etc/passwd",
)


def mangle(chance: random.Random, tensor: TensorProto) -> None:
    """Change one thing of a tensor."""
    match chance.choice(("dims", "dims", "type", "content", "content", "both", "place", "segment")):
        case "dims":
            _redim(chance, tensor)
        case "type":
            tensor.data_type = chance.randrange(-1, 27)
        case "both":
            tensor.float_data.extend([words.number(chance)] * chance.choice((1, 10, 1000)))
            tensor.int64_data.append(words.integer(chance))
        case "place":
            _place(chance, tensor)
        case "segment":
            tensor.segment.begin, tensor.segment.end = words.integer(chance), words.integer(chance)
        case _:
            _content(chance, tensor)


def _redim(chance: random.Random, tensor: TensorProto) -> None:
    if not tensor.dims or chance.random() < 0.3:
        tensor.dims.append(words.integer(chance))
    elif chance.random() < 0.3:
        tensor.dims[:] = list(tensor.dims)[::-1]
    else:
        tensor.dims[chance.randrange(len(tensor.dims))] = words.integer(chance)


def _content(chance: random.Random, tensor: TensorProto) -> None:
    data = tensor.raw_data
    match chance.choice(("short", "long", "noise", "nan", "zero", "none")):
        case "short":
            tensor.raw_data = data[: chance.randrange(len(data) + 1)]
        case "long":
            tensor.raw_data = data + chance.randbytes(chance.choice((1, 4, 4000)))
        case "noise":
            tensor.raw_data = chance.randbytes(len(data))
        case "nan":
            tensor.raw_data = b"\xff\xff\xff\x7f" * (len(data) // 4) + data[len(data) // 4 * 4 :]
        case "zero":
            tensor.raw_data = bytes(len(data))
        case _:
            tensor.ClearField("raw_data")


def _place(chance: random.Random, tensor: TensorProto) -> None:
    """Say that the data lies in a file."""
    if not tensor.external_data:
        tensor.data_location = TensorProto.EXTERNAL
        if chance.random() < 0.8:
            tensor.ClearField("raw_data")
        tensor.external_data.add(key="location", value=chance.choice(LOCATIONS))
        return
    entry = chance.choice(tensor.external_data)
    match entry.key:
        case "location":
            entry.value = chance.choice(LOCATIONS)
        case _:
            entry.value = chance.choice((str(words.integer(chance)), words.name(chance)))
    if chance.random() < 0.3:
        tensor.external_data.add(key=chance.choice(("offset", "length", "x")), value="4096")
