"""TensorRT for RTX: its real builder and the real provider plugin, over a simulated GPU.

The plugin's own copies of TensorRT and of CUDA's runtime are replaced by ours.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qconvert.core.formats import Precision
from tests.backends.graphs import make_graph
from tests.gpu_lab.conftest import Lab
from tests.gpu_lab.engines import do, prepare, result
from tests.gpu_lab.lab.environment import PLUGIN, Host
from tests.gpu_lab.lab.events import ChosenProfile, Deserialize, Kernels, Unanswered

RTX = "tensorrt-rtx"
PROVIDER = "NvTensorRTRTXExecutionProvider"
Machine = Callable[..., Host]

# Loads an engine with the options of a JSON text, and prints what is wrong with them.
LOAD = """
import json, sys
from pathlib import Path
import onnxruntime
from qconvert.backends import ort, tensorrt_rtx
device = ort.plugin_device(tensorrt_rtx.MODULE, tensorrt_rtx.PROVIDER, 0)
options = ort.runtime.SessionOptions()
options.add_provider_for_devices([device], json.loads(sys.argv[2]))
try:
    onnxruntime.InferenceSession(sys.argv[1], options, enable_fallback=0)
except Exception as error:
    print(error)
"""

PROBE = """
from qconvert.backends import tensorrt_rtx
from qconvert.backends.system_probe import detect
status = tensorrt_rtx.probe(detect())
print(status.builds, status.runs, status.version, status.reason, status.cure, sep="; ")
"""

# Registers the plugin, and prints the CUDA runtime that its libraries got.
REGISTER = """
from pathlib import Path
from qconvert.backends import ort, tensorrt_rtx
ort.plugin_devices(tensorrt_rtx.MODULE, tensorrt_rtx.PROVIDER)
maps = Path("/proc/self/maps").read_text().split()
print(*sorted({Path(name).resolve().parent.name for name in maps if "libcudart" in name}))
"""

# Compiles an ONNX file ahead of time with the plugin, as NVIDIA documents it.
COMPILE = """
import json, sys
from qconvert.backends import ort, tensorrt_rtx
options = ort.runtime.SessionOptions()
try:
    devices = ort.plugin_devices(tensorrt_rtx.MODULE, tensorrt_rtx.PROVIDER)
    options.add_provider_for_devices(devices[:1], json.loads(sys.argv[2]))
    ort.runtime.ModelCompiler(options, sys.argv[1]).compile_to_file("compiled.onnx")
except Exception as error:
    print(error)
"""


@pytest.mark.proves(RTX, "outputs in {precision}", by="real wheel")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engine_runs_in_the_plugin(rtx: Machine, tmp_path: Path, precision: Precision) -> None:
    done = do(rtx(), prepare(tmp_path / "e", RTX, precision), "build", "run")
    assert result(done)["by_provider"] == {PROVIDER: 1}
    assert [(it.valid, it.fits) for it in done.all(Deserialize)] == [(True, True)]
    assert done.all(Kernels) == [Kernels(cached=False, kept=True, graph=False)]
    assert not done.all(Unanswered)


@pytest.mark.proves(RTX, "compiled kernels kept between loads", by="real wheel")
def test_kernels_are_compiled_once_for_a_gpu(rtx: Machine, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "e", RTX)
    other = prepare(tmp_path / "other", RTX, "fp16")
    assert not do(rtx(), folder, "build", "run").all(Kernels)[0].cached
    assert not do(rtx(), other, "build", "run").all(Kernels)[0].cached
    assert do(rtx(), folder, "run").all(Kernels)[0].cached
    assert not do(rtx(gpus=("12.0",)), folder, "run").all(Kernels)[0].cached
    folders = {path.parent for path in (tmp_path / ".store/kernels").rglob("engine_*")}
    assert len(folders) == 2
    (tmp_path / ".store/CACHEDIR.TAG").touch()  # a step of a run marks the cache
    cleared = rtx().qconvert("cache", "--clear", "kernels", cwd=tmp_path)
    assert cleared.code == 0, cleared.err
    assert not any(folder.exists() for folder in folders)


@pytest.mark.proves(RTX, "setting `runtime-cache`", by="real wheel")
def test_kernels_are_kept_where_the_user_says(rtx: Machine, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "e", RTX, runtime_cache=str(tmp_path / "kept/kernels"))
    result(do(rtx(), folder, "build", "run"))
    [file] = (tmp_path / "kept/kernels").iterdir()
    assert do(rtx(), folder, "run").all(Kernels)[0].cached
    file.write_text("damaged")
    assert not do(rtx(), folder, "run").all(Kernels)[0].cached
    assert do(rtx(), folder, "run").all(Kernels)[0].cached


def test_folder_for_kernels_that_cannot_be_made(rtx: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    machine = replace(rtx(), environment={"QCONVERT_CACHE_DIR": str(tmp_path / "file/cache")})
    done = do(machine, prepare(tmp_path / "e", RTX), "build", "run")
    result(done)
    assert done.all(Kernels) == [Kernels(cached=False, kept=False, graph=False)]
    chosen = prepare(tmp_path / "chosen", RTX, runtime_cache=str(tmp_path / "file/kernels"))
    done = do(rtx(), chosen, "build", "run")
    assert done.code == 3
    assert "`tensorrt-rtx.runtime-cache`: " in done.err
    assert "Not a directory" in done.err
    assert not done.all(Deserialize)


@pytest.mark.proves(RTX, "setting `cuda-graph`", by="real wheel")
def test_cuda_graph_is_recorded_by_the_plugin_if_asked(rtx: Machine, tmp_path: Path) -> None:
    fixed = make_graph(RTX, "fp32").clone()
    for value in (*fixed.graph.inputs, *fixed.graph.outputs):
        assert value.shape is not None
        value.shape[0] = 2
    folder = prepare(tmp_path / "e", RTX, model=fixed, cuda_graph=True)
    done = do(rtx(), folder, "build", "run")
    result(done)
    assert [it.graph for it in done.all(Kernels)] == [True]
    varying = do(rtx(), prepare(tmp_path / "varying", RTX, cuda_graph=True), "build")
    assert varying.code == 2
    assert "a CUDA graph needs fixed shapes" in varying.err


@pytest.mark.proves(RTX, "several profiles", by="real wheel")
def test_run_takes_the_profile_closest_to_its_batch(rtx: Machine, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "e", RTX, more_profiles="1,1,1 2,2,2")
    done = do(rtx(), folder, "build", "run")
    result(done)
    assert {it.index for it in done.all(ChosenProfile)} == {1, 2}


def load(machine: Host, folder: Path, **options: str) -> tuple[str, list[Kernels]]:
    file = folder / "engine/model_ctx.onnx"
    done = machine.run("-c", LOAD, file, json.dumps(options), cwd=folder)
    assert done.code == 0, done.err
    return done.out, done.all(Kernels)


@pytest.mark.proves(RTX, "spelling of every option", by="real wheel")
def test_plugin_knows_its_options(rtx: Machine, tmp_path: Path) -> None:
    """What the settings rest on; if it fails, the plugin has changed."""
    folder = prepare(tmp_path / "e", RTX)
    result(do(rtx(), folder, "build"))
    assert 'Unknown provider option: "nv_cuda_graph"' in load(rtx(), folder, nv_cuda_graph="1")[0]
    # The profile is an option of a run, and the GPU that of the device.
    for name in ("nv_profile_index", "device_id"):
        assert f'Unknown provider option: "{name}"' in load(rtx(), folder, **{name: "0"})[0]
    # Its header says that graphs are off unless switched on.
    assert [it.graph for it in load(rtx(), folder)[1]] == [True]
    assert [it.graph for it in load(rtx(), folder, enable_cuda_graph="0")[1]] == [False]
    # Without a folder for them, it loads nothing, although it says that kernels are not kept.
    reason, loaded = load(rtx(), folder, nv_runtime_cache_path="/dev/null/kernels")
    assert "The runtime cache directory could not be created at: /dev/null/kernels" in reason
    assert not loaded


@pytest.mark.proves(RTX, "second GPU", by="real wheel")
def test_engine_runs_on_the_gpu_of_the_setting(rtx: Machine, tmp_path: Path) -> None:
    for device in (0, 1):
        folder = prepare(tmp_path / f"e{device}", RTX, device=device)
        done = do(rtx(gpus=("8.6", "12.0")), folder, "build", "run")
        result(done)
        assert [it.gpu for it in done.all(Deserialize)] == [device]
    done = do(rtx(gpus=("7.5", "12.0")), tmp_path / "e0", "run")
    assert done.code == 4
    assert f"{PROVIDER} does not run on GPU 0" in done.err
    assert "hint: set `tensorrt-rtx.device` to one of 1" in done.err


@pytest.mark.proves(RTX, "plugin loads beside a driver alone", by="real wheel")
def test_plugin_gets_the_cuda_runtime_beside_it(lab: Lab) -> None:
    out = lab.python(REGISTER, machine=lab.machines.rtx())
    assert out.splitlines() == [PLUGIN]


def test_driver_that_is_too_old_is_named(rtx: Machine, tmp_path: Path) -> None:
    text = doctor(rtx(cuda=12080, driver="570.1"), tmp_path)
    assert "too old for CUDA 13: found 570.1 (CUDA 12.8)" in text


def doctor(machine: Host, folder: Path) -> str:
    """Return what `doctor` would say of this backend alone."""
    done = machine.run("-c", PROBE, cwd=folder)
    assert done.code == 0, done.err
    return done.out


def test_doctor_loads_the_plugin(rtx: Machine, tmp_path: Path) -> None:
    done = rtx().qconvert("doctor", "--json", cwd=tmp_path)
    state = json.loads(done.out)["backends"]["tensorrt-rtx"]
    assert (state["builds"], state["runs"]) == (True, True)


@pytest.mark.proves(RTX, "missing library named", by="real wheel")
def test_doctor_names_the_library_that_the_plugin_lacks(rtx: Machine, tmp_path: Path) -> None:
    """A container with the driver's `compute` part, without NVML."""
    machine = rtx()
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver/libcuda.so.1").symlink_to(machine.folder / "driver/libcuda.so.1")
    values = {**machine.environment, "LD_LIBRARY_PATH": str(tmp_path / "driver")}
    text = doctor(replace(machine, environment=values), tmp_path)
    assert "libnvidia-ml.so.1: cannot open shared object file" in text
    assert "start it with `--gpus all`" in text


@pytest.mark.proves(RTX, "read-only installation of the plugin", by="real wheel")
def test_doctor_names_links_that_the_plugin_cannot_make(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    folder = tmp_path / "machine"
    shutil.copytree(lab.machines.rtx(), folder, symlinks=True)
    [plugin] = folder.glob(f"lib/python*/site-packages/{PLUGIN}")
    # As pip unpacks it, and a folder where nothing can be renamed.
    (plugin / "libtensorrt_rtx.so").unlink(missing_ok=True)
    (plugin / "libtensorrt_rtx.so").write_text("libtensorrt_rtx.so.1.7.1")
    (plugin / "libtensorrt_rtx.so.bak/file").mkdir(parents=True)
    text = doctor(lab.host(folder), tmp_path)
    assert "Could not fix library symlinks" in text
    assert "may fail with SIGSEGV" in text
    assert f'-c "import {PLUGIN}"' in text


def test_doctor_says_where_gpus_are_looked_for(rtx: Machine, tmp_path: Path) -> None:
    machine = rtx()
    values = {**machine.environment, "GPU_LAB_DRM": str(tmp_path)}
    text = doctor(replace(machine, environment=values), tmp_path)
    assert "ONNX Runtime looks in /sys/class/drm, which lists no GPU" in text
    assert "sudo modprobe nvidia-drm" in text


@pytest.mark.proves(RTX, "timing by events, copies, CUDA graph, load", by="real wheel")
def test_gpu_is_timed_as_others_are(rtx: Machine, world: Path) -> None:
    settings = ("--set", "bench.seconds=0.05", "--set", "bench.streams=2")
    command = ("build", "model.onnx", "-o", "run", "--images", "calib_data", "--eval", "val")
    done = rtx(engine_mb=64).qconvert(
        *command, "--backend", RTX, "--precision", "fp32,int8", *settings, cwd=world
    )
    assert done.code == 0, done.err
    report = json.loads((world / "run/report.json").read_text())
    assert [it["name"] for it in report["variants"]] == [f"{RTX}-fp32", f"{RTX}-int8"]
    for variant in report["variants"]:
        timed = [(item["batch"], item["where"]) for item in variant["latency"]]
        assert timed[:3] == [(1, "host"), (1, "device"), (1, "graph")]
        assert variant["latency"][0]["gpu"]["device_bytes"] > 64e6
        assert variant["accuracy"]["measured_on"] == "engine"
        assert variant["accuracy"]["agreement"] == 100
    assert "On a simulated GPU: " in done.out
    assert not done.all(Unanswered)


@pytest.mark.proves(RTX, "script of a package", by="real wheel")
def test_packaged_script_runs_and_keeps_kernels_beside_it(rtx: Machine, world: Path) -> None:
    more = ("--set", f"{RTX}.more-profiles=1,1,1 8,8,8", "--set", "bench.seconds=0.02")
    command = ("build", "model.onnx", "-o", "run", "--images", "calib_data", "--backend", RTX)
    done = rtx().qconvert(*command, "--precision", "fp32", *more, cwd=world)
    assert done.code == 0, done.err
    pack = ("package", "run", "--format", "onnxruntime", "--engine", f"{RTX}-fp32", "-o", "pack")
    done = rtx().qconvert(*pack, cwd=world)
    assert done.code == 0, done.err
    image = next(path for path in sorted((world / "val").iterdir()) if path.suffix != ".csv")
    runs = [rtx().run("pack/run.py", image, cwd=world) for _ in range(2)]
    for done in runs:
        assert (done.code, done.err) == (0, "")
        assert done.out.count(str(image)) >= 1
        assert [it.index for it in done.all(ChosenProfile)] == [1]
    assert [done.all(Kernels)[0].cached for done in runs] == [False, True]
    assert len(list((world / "pack/kernels").iterdir())) == 1


def compile_ahead(machine: Host, folder: Path, **options: str) -> str:
    done = machine.run("-c", COMPILE, "graph.onnx", json.dumps(options), cwd=folder)
    assert done.code == 0, done.err
    return done.out


@pytest.mark.proves(RTX, "build by the plugin for a named GPU", by="real wheel")
def test_plugin_compiles_ahead_of_time_only_where_it_sees_a_gpu(lab: Lab, tmp_path: Path) -> None:
    """The plugin's TensorRT is real here; our own builds need neither a GPU nor a driver."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    folder = prepare(tmp_path / "e", RTX)
    machine = lab.host(lab.machines.rtx("libcudart.so.13.4.36"))
    # For the GPU of the machine, TensorRT itself asks for it.
    assert "Failed to create serialized engine" in compile_ahead(machine, folder)
    assert not list(folder.glob("*.engine"))
    # For a GPU that is named, nobody uses the one that is there ...
    assert compile_ahead(machine, folder, nv_target_sm="sm89") == ""
    assert (folder / "compiled.onnx").stat().st_size < 10_000
    [engine] = folder.glob("*.engine")
    assert engine.stat().st_size > 100_000
    # ... but without one, the plugin has no device that a session could name,
    empty = replace(machine, script=replace(machine.script, gpus=()))
    assert "found no device" in compile_ahead(empty, folder, nv_target_sm="sm89")
    # and without a driver, it does not load.
    values = {**machine.environment, "LD_LIBRARY_PATH": "", "LD_PRELOAD": ""}
    bare = compile_ahead(replace(machine, environment=values), folder, nv_target_sm="sm89")
    assert "libcuda.so.1: cannot open shared object file" in bare
