"""The part of Triton's `ModelConfig` that packages use, to read their text strictly.

Names, numbers and types of the fields are those of Triton's `model_config.proto`; a field that is
not listed, or has another type, is an error.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format  # type: ignore[import-untyped]

INT32, INT64, STRING = 5, 3, 9
TYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "STRING", "BF16",
)  # fmt: skip
KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")
MANY = True

MESSAGES: dict[str, dict[str, tuple[Any, ...]]] = {
    "ModelTensorReshape": {"shape": (1, INT64, MANY)},
    "ModelInput": {
        "name": (1, STRING), "data_type": (2, "DataType"), "dims": (4, INT64, MANY),
        "reshape": (5, "ModelTensorReshape"),
    },
    "ModelOutput": {
        "name": (1, STRING), "data_type": (2, "DataType"), "dims": (3, INT64, MANY),
        "label_filename": (4, STRING), "reshape": (5, "ModelTensorReshape"),
    },
    "ModelInstanceGroup": {"count": (2, INT32), "kind": (4, "Kind")},
    "ModelDynamicBatching": {"preferred_batch_size": (1, INT32, MANY)},
    "ModelParameter": {"string_value": (1, STRING)},
    "Parameter": {"key": (1, STRING), "value": (2, "ModelParameter")},
    "ModelConfig": {
        "name": (1, STRING), "platform": (2, STRING), "max_batch_size": (4, INT32),
        "input": (5, "ModelInput", MANY), "output": (6, "ModelOutput", MANY),
        "instance_group": (7, "ModelInstanceGroup", MANY),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "parameters": (14, "Parameter", MANY),
    },
}  # fmt: skip
ENUMS = {"DataType": [f"TYPE_{name}" for name in TYPES], "Kind": list(KINDS)}


def parse(text: str) -> Any:
    """Read a `config.pbtxt`."""
    return text_format.Parse(text, _config_class()())


def _config_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="t", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, *many) in fields.items():
            added = message.field.add(name=field, number=number, label=3 if many else 1)
            if isinstance(kind, int):
                added.type = kind
            else:
                added.type = 14 if kind in ENUMS else 11
                added.type_name = f".t.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))
