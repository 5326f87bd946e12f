"""The options of the TensorRT provider, each with its reason."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qconvert.backends
from qconvert.backends import tensorrt
from qconvert.backends.base import BuildSpec, Engine, LoadSpec, Precision, Profile
from qconvert.backends.nvinfer import CONTEXT
from qconvert.backends.tensorrt import (
    engine_files,
    load_options,
    profile_options,
    provider_options,
    read_options,
    takes_flags,
)
from qconvert.core.config import TensorrtConfig
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.quantize.plan import RestPrecision

HERE = Path(__file__).parent
FOLDER = Path("engine")
IMAGE = TensorSpec("image", np.dtype(np.float32), ("N", 3, 224, 224))
MASK = TensorSpec("mask", np.dtype(np.float32), ("N", 10))
FIXED = TensorSpec("scale", np.dtype(np.float32), (1, 4))


def spec(
    precision: Precision = "fp32", rest: RestPrecision | None = None, **options: str | int
) -> BuildSpec:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return BuildSpec(precision, Profile(1, 8, 32), options=named, rest=rest)


def options_of(build: BuildSpec, *, flags: bool = True) -> dict[str, str]:
    return provider_options(build, FOLDER, flags, [IMAGE])


def load_spec(**options: bool) -> LoadSpec:
    """Return the load options of an engine with these options."""
    named = {name.replace("_", "-"): value for name, value in options.items()}
    key = tensorrt.cache_key(BuildSpec("fp32", Profile(), options=named))
    return tensorrt.load_spec(Engine("tensorrt", "fp32", FOLDER, "model.onnx", (CONTEXT,), key))


def precision_flags(options: dict[str, str]) -> set[str]:
    return {name for name in options if re.fullmatch(r"trt_(fp16|bf16|int8)_enable", name)}


@pytest.mark.parametrize(
    ("runtime", "version", "flags"),
    [
        ("1.31.1", "10.16.1.11", True),
        ("1.27.0", "10.13.3.9", True),
        ("1.31.1", "11.4.0.106", False),
        ("1.26.0", "10.13.3.9", False),
        ("1.20.1", "10.4.0", False),
        ("1.26.0", "11.0.0", None),
        ("1.19.2", "10.0.0", None),
        ("1.31.1", "", None),
        ("odd", "10.0.0", None),
    ],
)
def test_typing_of_a_build_follows_from_the_releases(
    runtime: str, version: str, flags: bool | None
) -> None:
    assert takes_flags(runtime, version) is flags


@pytest.mark.parametrize(
    ("precision", "rest", "expected"),
    [
        ("fp32", None, set()),
        ("fp16", None, {"trt_fp16_enable"}),
        ("bf16", None, {"trt_bf16_enable"}),
        ("int8", None, {"trt_int8_enable", "trt_fp16_enable"}),
        ("int8", "bf16", {"trt_int8_enable", "trt_bf16_enable"}),
        ("int8", "fp32", {"trt_int8_enable"}),
    ],
)
def test_precision_flags_are_set_for_weakly_typed_builds_alone(
    precision: Precision, rest: RestPrecision | None, expected: set[str]
) -> None:
    options = options_of(spec(precision, rest))
    assert precision_flags(options) == expected
    assert ("trt_layer_norm_fp32_fallback" in options) == ("trt_fp16_enable" in expected)
    assert precision_flags(options_of(spec(precision, rest), flags=False)) == set()


def test_profiles_name_every_dynamic_input_and_no_other() -> None:
    assert profile_options(Profile(1, 8, 32), [IMAGE, FIXED, MASK]) == {
        "trt_profile_min_shapes": "image:1x3x224x224,mask:1x10",
        "trt_profile_opt_shapes": "image:8x3x224x224,mask:8x10",
        "trt_profile_max_shapes": "image:32x3x224x224,mask:32x10",
    }
    assert profile_options(Profile(), [FIXED]) == {}


def test_unknown_size_is_asked_for() -> None:
    image = TensorSpec("image", np.dtype(np.float32), ("N", 3, "H", "W"))
    with pytest.raises(UsageError, match="only the batch may be dynamic") as caught:
        profile_options(Profile(), [image])
    assert "--input image" in caught.value.hint


def test_engine_is_stored_so_that_it_loads_without_a_rebuild() -> None:
    options = options_of(spec())
    assert options["trt_dump_ep_context_model"] == "1"
    assert options["trt_ep_context_embed_mode"] == "0"
    assert options["trt_ep_context_file_path"] == str(FOLDER / CONTEXT)
    # The context model can only name files beside it.
    assert "trt_engine_cache_path" not in options


def test_settings_become_provider_options() -> None:
    options = options_of(
        spec(workspace=512, level=5, timing_cache="timings", hardware_compatible=True, device=1)
    )
    assert options["trt_max_workspace_size"] == str(512 * 2**20)
    assert options["trt_builder_optimization_level"] == "5"
    assert options["trt_timing_cache_enable"] == "1"
    assert options["trt_timing_cache_path"] == "timings"
    assert (options["trt_engine_hw_compatible"], options["device_id"]) == ("1", "1")


def test_fallback_replaces_the_context_model_by_a_cache_of_engines() -> None:
    options = options_of(spec(allow_fallback=True))
    assert options["trt_engine_cache_path"] == str(FOLDER)
    assert "trt_dump_ep_context_model" not in options
    assert load_spec().providers == (("TensorrtExecutionProvider", {"device_id": "0"}),)
    assert len(load_spec(allow_fallback=True).providers) == 3
    notes = tensorrt.fallback_notes(
        {"TensorrtExecutionProvider": ["Conv a"], "CPUExecutionProvider": ["Shape b", "If c"]}
    )
    assert notes == ("2 nodes run on CPUExecutionProvider: Shape b, If c",)


def test_weight_stripped_engine_loads_its_graph_too(tmp_path: Path) -> None:
    settings = TensorrtConfig(weight_stripped=True)
    for name in ("model_sm90.stripped.engine", "model_sm90.engine", CONTEXT):
        (tmp_path / name).touch()
    files = (CONTEXT, "model_sm90.stripped.engine", "model.onnx")
    assert engine_files(tmp_path, settings, ("model.onnx",)) == files
    assert load_options(settings, tmp_path)["trt_onnx_model_folder_path"] == str(tmp_path)


def test_files_that_were_not_written_are_not_listed(tmp_path: Path) -> None:
    settings, fallback = TensorrtConfig(), TensorrtConfig(allow_fallback=True)
    assert engine_files(tmp_path, settings, ("model.onnx",)) == ()
    (tmp_path / "model_sm90.engine").touch()
    assert engine_files(tmp_path, settings, ("model.onnx",)) == ()
    assert engine_files(tmp_path, fallback, ("model.onnx",)) == ("model.onnx", "model_sm90.engine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"builder": "trtexec"}, "'provider' or 'native', got 'trtexec'"),
        ({"level": 6}, "`tensorrt.level`: .*less than or equal to 5"),
        ({"workspace": -1}, "`tensorrt.workspace`: .*greater than or equal to 0"),
        ({"builder": "native", "allow_fallback": True}, "no effect with the native builder"),
    ],
)
def test_invalid_settings_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_options(spec(**options))


def test_provider_options_in_use_are_in_stored_list() -> None:
    lines = (HERE / "trt_options.txt").read_text(encoding="utf-8").splitlines()
    stored = {line for line in lines if line and not line.startswith("#")}
    used: set[str] = set()
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
    for precision, flags, enabled in itertools.product(precisions, (False, True), (False, True)):
        switches: dict[str, Any] = dict.fromkeys(
            ("hardware_compatible", "weight_stripped", "cuda_graph"), enabled
        )
        build = spec(precision, workspace=1, timing_cache="t", **switches)
        used |= set(options_of(build, flags=flags))
        used |= set(load_options(read_options(build), FOLDER))
        used |= set(options_of(spec(precision, allow_fallback=enabled), flags=flags))
    for path in Path(qconvert.backends.__file__).parent.glob("*.py"):
        used |= set(re.findall(r'"(trt_\w+)"', path.read_text(encoding="utf-8")))
    assert used - stored == set()
    assert len(used) > 20
