"""The options of the TensorRT provider, each with its reason, and what each release needs."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qconvert.backends
from qconvert.backends import tensorrt
from qconvert.backends.base import BuildSpec, Engine, LoadSpec, Profile
from qconvert.backends.nvinfer import CONTEXT
from qconvert.backends.system_probe import Installed
from qconvert.backends.tensorrt import engine_files, load_options, profile_options, read_options
from qconvert.backends.versions import find_release, loads_in_provider
from qconvert.core.config import TensorrtConfig
from qconvert.core.errors import UsageError
from qconvert.core.formats import Precision
from qconvert.core.tensors import TensorSpec
from qconvert.quantize.plan import RestPrecision

HERE = Path(__file__).parent
FOLDER = Path("engine")
IMAGE = TensorSpec("image", np.dtype(np.float32), ("N", 3, 224, 224))
MASK = TensorSpec("mask", np.dtype(np.float32), ("N", 10))
FIXED = TensorSpec("scale", np.dtype(np.float32), (1, 4))


def provider_engine(
    precision: Precision = "fp32",
    rest: RestPrecision | None = None,
    *,
    flags: bool = True,
    **options: str | int,
) -> Engine:
    """Return an engine that the provider builds with these settings."""
    settings = {name.replace("_", "-"): value for name, value in options.items()}
    spec = BuildSpec(
        precision, Profile(1, 8, 32), options={"builder": "provider", **settings}, rest=rest
    )
    key = {**tensorrt.cache_key(spec), "flags": str(flags), "graph": "0123456789ab"}
    return Engine("tensorrt", precision, FOLDER, "model.onnx", (CONTEXT,), key)


def build_options(engine: Engine) -> dict[str, str]:
    return tensorrt.build_options(engine, [IMAGE], Path("timings/native.timing"))


def native_load_spec(**options: bool) -> LoadSpec:
    settings = {name.replace("_", "-"): value for name, value in options.items()}
    key = tensorrt.cache_key(BuildSpec("fp32", Profile(), options=settings))
    return tensorrt.load_spec(Engine("tensorrt", "fp32", FOLDER, "model.onnx", (CONTEXT,), key))


def used_options() -> set[str]:
    """Return every option that building or loading an engine can use."""
    used: set[str] = set()
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
    for precision, flags, enabled in itertools.product(precisions, (False, True), (False, True)):
        switches: dict[str, Any] = dict.fromkeys(
            ("hardware_compatible", "cuda_graph", "allow_fallback"), enabled
        )
        engine = provider_engine(precision, flags=flags, workspace=1, **switches)
        used |= set(build_options(engine)) | set(load_options(engine))
    for path in Path(qconvert.backends.__file__).parent.glob("*.py"):
        used |= set(re.findall(r'"(trt_\w+)"', path.read_text(encoding="utf-8")))
    return used


@pytest.mark.parametrize(
    ("runtime", "version", "loads", "flags"),
    [
        ("1.31.1", "10.16.1.11", True, True),
        ("1.31.1", "10.13.3.9.post1", False, True),
        ("1.31.1", "11.4.0.106", False, True),
        ("1.27.0", "10.13.3.9", True, True),
        ("1.26.0", "10.13.3.9", True, False),
        ("1.26.0", "11.0.0", False, False),
        ("1.31.1", "", False, True),
        ("1.19.2", "10.0.0", False, None),
        ("odd", "10.0.0", False, None),
    ],
)
def test_releases_decide_who_loads_an_engine_and_what_types_it(
    runtime: str, version: str, loads: bool, flags: bool | None
) -> None:
    installed = Installed({"onnxruntime-gpu": runtime, "tensorrt-cu13": version})
    assert loads_in_provider(installed) is loads
    release = find_release(installed)
    assert (release.takes_flags if release else None) is flags


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
    pattern = r"trt_(fp16|bf16|int8)_enable"
    options = build_options(provider_engine(precision, rest))
    assert {name for name in options if re.fullmatch(pattern, name)} == expected
    assert ("trt_layer_norm_fp32_fallback" in options) == ("trt_fp16_enable" in expected)
    options = build_options(provider_engine(precision, rest, flags=False))
    assert not [name for name in options if re.fullmatch(pattern, name)]


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


@pytest.mark.parametrize("name", ["input:0", "a,b"])
def test_input_whose_name_ends_a_profile_is_refused(name: str) -> None:
    image = TensorSpec(name, np.dtype(np.float32), ("N", 3, 224, 224))
    with pytest.raises(UsageError, match=f"cannot read a profile for the input `{name}`"):
        profile_options(Profile(), [image])


def test_engine_is_stored_so_that_it_loads_without_a_rebuild() -> None:
    options = build_options(provider_engine())
    assert options["trt_dump_ep_context_model"] == "True"
    assert options["trt_ep_context_embed_mode"] == "0"
    assert options["trt_ep_context_file_path"] == str(FOLDER.absolute() / CONTEXT)
    # The context model can only name files beside it.
    assert "trt_engine_cache_path" not in options


def test_settings_become_provider_options() -> None:
    options = build_options(
        provider_engine(workspace=512, level=5, hardware_compatible=True, device=1)
    )
    assert options["trt_max_workspace_size"] == str(512 * 2**20)
    assert options["trt_builder_optimization_level"] == "5"
    assert options["trt_timing_cache_enable"] == "True"
    assert options["trt_timing_cache_path"] == "timings"
    assert (options["trt_engine_hw_compatible"], options["device_id"]) == ("True", "1")


def test_engine_cache_is_loaded_with_all_options_of_its_build() -> None:
    engine = provider_engine("int8", level=5, hardware_compatible=True, allow_fallback=True)
    built, loaded = build_options(engine), load_options(engine)
    only_build = {name for name in built if name not in loaded}
    assert all(re.match("trt_(profile|timing_cache)_", name) for name in only_build)
    assert loaded.items() <= built.items()
    assert built["trt_engine_cache_path"] == str(FOLDER.absolute())
    assert "0123456789ab" in built["trt_engine_cache_prefix"]
    assert "trt_dump_ep_context_model" not in built


def test_fallback_brings_other_providers_on_the_same_gpu() -> None:
    assert native_load_spec().providers == (("TensorrtExecutionProvider", {"device_id": "0"}),)
    engine = provider_engine(allow_fallback=True, device=1, use_tf32=False)
    spec = tensorrt._load_spec(engine, {})
    assert spec.providers[1:] == (
        ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}),
        ("CPUExecutionProvider", {}),
    )
    notes = tensorrt.fallback_notes(
        {"TensorrtExecutionProvider": ["Conv a"], "CPUExecutionProvider": ["Shape b", "If c"]}
    )
    assert notes == ("2 nodes run on CPUExecutionProvider: Shape b, If c",)


def test_weight_stripped_engine_loads_its_graph_too(tmp_path: Path) -> None:
    settings = TensorrtConfig(weight_stripped=True)
    for name in ("model.stripped.engine", "model.engine", CONTEXT):
        (tmp_path / name).touch()
    files = (CONTEXT, "model.stripped.engine", "model.onnx")
    assert engine_files(tmp_path, settings, ("model.onnx",)) == files


def test_files_that_were_not_written_are_not_listed(tmp_path: Path) -> None:
    settings, fallback = TensorrtConfig(), TensorrtConfig(allow_fallback=True)
    assert engine_files(tmp_path, settings, ("model.onnx",)) == ()
    for name in ("model_sm90.engine", "model_sm90.profile"):
        (tmp_path / name).touch()
    assert engine_files(tmp_path, settings, ("model.onnx",)) == ()
    files = ("model.onnx", "model_sm90.engine", "model_sm90.profile")
    assert engine_files(tmp_path, fallback, ("model.onnx",)) == files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"builder": "trtexec"}, "'native' or 'provider', got 'trtexec'"),
        ({"level": 6}, "`tensorrt.level`: .*less than or equal to 5"),
        ({"workspace": -1}, "`tensorrt.workspace`: .*greater than or equal to 0"),
        ({"allow-fallback": True}, "no effect with the native builder"),
        ({"builder": "provider", "weight-stripped": True}, "in other files"),
    ],
)
def test_invalid_settings_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_options(BuildSpec("fp32", Profile(), options=options))


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [("", 0, "0"), ("", 2, "2"), ("3,1", 1, "1"), ("GPU-8f", 0, "GPU-8f")],
)
def test_native_builder_sees_one_gpu(
    visible: str, device: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert tensorrt._only_gpu(device) == {"CUDA_VISIBLE_DEVICES": expected}


def test_provider_options_in_use_are_in_stored_list() -> None:
    lines = (HERE / "trt_options.txt").read_text(encoding="utf-8").splitlines()
    stored = {line for line in lines if line and not line.startswith("#")}
    assert used_options() - stored == set()
    assert len(used_options()) > 18
