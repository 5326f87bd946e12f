"""What the TensorRT provider is told: every option, and why it is there."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qconvert.backends
from qconvert.backends import tensorrt
from qconvert.backends.base import BuildSpec, Precision, Profile, read_settings
from qconvert.backends.system_probe import Installed
from qconvert.backends.tensorrt_options import (
    CONTEXT,
    TensorrtSettings,
    engine_files,
    load_options,
    profile_options,
    provider_options,
    providers_with_fallbacks,
)
from qconvert.backends.versions import NETWORK_TYPES, network_types
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.quantize.plan import RestPrecision

HERE = Path(__file__).parent
FOLDER = Path("engine")
IMAGE = TensorSpec("image", np.dtype(np.float32), ("N", 3, 224, 224))
MASK = TensorSpec("mask", np.dtype(np.float32), ("N", 10))
FIXED = TensorSpec("scale", np.dtype(np.float32), (1, 4))
WEAK = network_types("1.31.1", "10.16.1.11")
TYPED = network_types("1.26.0", "10.13.3.9")
assert WEAK is not None
assert TYPED is not None


def spec(
    precision: Precision = "fp32", rest: RestPrecision | None = None, **options: str | int
) -> BuildSpec:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return BuildSpec(precision, Profile(1, 8, 32), options=named, rest=rest)


def flags(made: dict[str, str]) -> set[str]:
    return {name for name in made if re.fullmatch(r"trt_(fp16|bf16|int8)_enable", name)}


@pytest.mark.parametrize(
    ("runtime", "found", "by_flags"),
    [
        ("1.31.1", "10.16.1.11", True),
        ("1.27.0", "10.13.3.9", True),
        ("1.31.1", "11.4.0.106", False),
        ("1.26.0", "10.13.3.9", False),
        ("1.20.1", "10.4.0", False),
    ],
)
def test_where_each_pair_of_releases_takes_types_from(
    runtime: str, found: str, by_flags: bool
) -> None:
    row = network_types(runtime, found)
    assert row is not None
    assert row.flags is by_flags


def test_pairs_that_are_not_known_to_work_are_not_in_the_table() -> None:
    assert network_types("1.26.0", "11.0.0") is None
    assert network_types("1.19.2", "10.0.0") is None
    assert network_types("1.31.1", "") is None
    assert sorted(NETWORK_TYPES, key=lambda row: row.since, reverse=True) == list(NETWORK_TYPES)


@pytest.mark.parametrize(
    ("precision", "rest", "wanted"),
    [
        ("fp32", None, set()),
        ("fp16", None, {"trt_fp16_enable"}),
        ("bf16", None, {"trt_bf16_enable"}),
        ("int8", None, {"trt_int8_enable", "trt_fp16_enable"}),
        ("int8", "bf16", {"trt_int8_enable", "trt_bf16_enable"}),
        ("int8", "fp32", {"trt_int8_enable"}),
    ],
)
def test_weakly_typed_builds_get_flags_and_typed_ones_none(
    precision: Precision, rest: RestPrecision | None, wanted: set[str]
) -> None:
    assert WEAK is not None
    assert TYPED is not None
    weak = provider_options(spec(precision, rest), FOLDER, WEAK, [IMAGE])
    assert flags(weak) == wanted
    assert ("trt_layer_norm_fp32_fallback" in weak) == ("trt_fp16_enable" in wanted)
    assert flags(provider_options(spec(precision, rest), FOLDER, TYPED, [IMAGE])) == set()


def test_which_graph_to_make_is_known_before_there_is_one() -> None:
    weak = Installed({"onnxruntime-gpu": "1.31.1", "tensorrt-cu13-libs": "10.16.1.11"})
    strong = Installed({"onnxruntime-gpu": "1.26.0", "tensorrt-cu12-libs": "10.13.3.9"})
    asked: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
    wanted = ["typed", "float32", "float32", "float32"]
    assert [tensorrt.graph_precision(each, weak) for each in asked] == wanted
    for machine in (strong, Installed()):
        assert {tensorrt.graph_precision(each, machine) for each in asked} == {"typed"}
    assert {tensorrt.graph_precision(each, weak, "native") for each in asked} == {"typed"}


def test_profiles_name_every_dynamic_input_and_no_other() -> None:
    made = profile_options(Profile(1, 8, 32), [IMAGE, FIXED, MASK])
    assert made == {
        "trt_profile_min_shapes": "image:1x3x224x224,mask:1x10",
        "trt_profile_opt_shapes": "image:8x3x224x224,mask:8x10",
        "trt_profile_max_shapes": "image:32x3x224x224,mask:32x10",
    }
    assert profile_options(Profile(), [FIXED]) == {}


def test_a_size_that_is_not_known_is_asked_for() -> None:
    open_size = TensorSpec("image", np.dtype(np.float32), ("N", 3, "H", "W"))
    with pytest.raises(UsageError, match="only the batch may be open") as caught:
        profile_options(Profile(), [open_size])
    assert "--input image" in caught.value.hint


def test_an_engine_is_stored_so_that_it_loads_without_a_rebuild() -> None:
    assert WEAK is not None
    made = provider_options(spec(), FOLDER, WEAK, [IMAGE])
    assert made["trt_dump_ep_context_model"] == "1"
    assert made["trt_ep_context_embed_mode"] == "0"
    assert made["trt_ep_context_file_path"] == str(FOLDER / CONTEXT)
    # Beside the context model, which may name only files there.
    assert "trt_engine_cache_path" not in made


def test_settings_become_options() -> None:
    assert WEAK is not None
    made = provider_options(
        spec(workspace=512, level=5, timing_cache="timings", hardware_compatible=True, device=1),
        FOLDER,
        WEAK,
        [IMAGE],
    )
    assert made["trt_max_workspace_size"] == str(512 * 2**20)
    assert made["trt_builder_optimization_level"] == "5"
    assert (made["trt_timing_cache_enable"], made["trt_timing_cache_path"]) == ("1", "timings")
    assert (made["trt_engine_hw_compatible"], made["device_id"]) == ("1", "1")


def test_where_others_may_take_nodes_engines_are_cached_and_listed() -> None:
    assert WEAK is not None
    made = provider_options(spec(allow_fallback=True), FOLDER, WEAK, [IMAGE])
    assert made["trt_engine_cache_path"] == str(FOLDER)
    assert "trt_dump_ep_context_model" not in made
    assert providers_with_fallbacks({}, TensorrtSettings()) == [("TensorrtExecutionProvider", {})]
    assert len(providers_with_fallbacks({}, TensorrtSettings(allow_fallback=True))) == 3
    notes = tensorrt.fallback_notes(
        {"TensorrtExecutionProvider": ["Conv a"], "CPUExecutionProvider": ["Shape b", "If c"]}
    )
    assert notes == ("2 nodes run on CPUExecutionProvider: Shape b, If c",)


def test_engines_without_weights_are_filled_from_the_graph_beside_them(tmp_path: Path) -> None:
    stripped = read_settings(TensorrtSettings, spec(weight_stripped=True), "tensorrt")
    for name in ("model_sm90.stripped.engine", "model_sm90.engine", CONTEXT):
        (tmp_path / name).touch()
    wanted = (CONTEXT, "model_sm90.stripped.engine", "model.onnx")
    assert engine_files(tmp_path, stripped, ("model.onnx",)) == wanted
    assert load_options(stripped, tmp_path)["trt_onnx_model_folder_path"] == str(tmp_path)


def test_what_was_not_written_is_not_listed(tmp_path: Path) -> None:
    plain = read_settings(TensorrtSettings, spec(), "tensorrt")
    assert engine_files(tmp_path, plain, ("model.onnx",)) == ()
    (tmp_path / "model_sm90.engine").touch()
    assert engine_files(tmp_path, plain, ("model.onnx",)) == ()
    fallback = read_settings(TensorrtSettings, spec(allow_fallback=True), "tensorrt")
    assert engine_files(tmp_path, fallback, ("model.onnx",)) == ("model.onnx", "model_sm90.engine")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"builder": "trtexec"}, "`builder` is provider or native"),
        ({"level": 6}, "`level` goes from 0 to 5"),
        ({"workspace": -1}, "not negative"),
        ({"builder": "native", "allow_fallback": True}, "does nothing with the native builder"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read_settings(TensorrtSettings, spec(**options), "tensorrt")


def test_every_option_is_one_that_the_provider_has() -> None:
    known = {
        line
        for line in (HERE / "trt_options.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    used: set[str] = set()
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
    for precision, row, on in itertools.product(precisions, NETWORK_TYPES, (False, True)):
        switches = ("hardware_compatible", "weight_stripped", "cuda_graph")
        chosen: dict[str, Any] = dict.fromkeys(switches, on)
        given = spec(precision, workspace=1, timing_cache="t", **chosen)
        used |= set(provider_options(given, FOLDER, row, [IMAGE]))
        used |= set(load_options(read_settings(TensorrtSettings, given, "tensorrt"), FOLDER))
        used |= set(provider_options(spec(precision, allow_fallback=on), FOLDER, row, [IMAGE]))
    sources = Path(qconvert.backends.__file__).parent.glob("*.py")
    for source in sources:
        used |= set(re.findall(r'"(trt_\w+)"', source.read_text(encoding="utf-8")))
    assert used - known == set()
    assert len(used) > 20
