"""A folder that runs with ONNX Runtime alone: the engine, its preprocessing, and a script.

The script prepares images by the same steps as `qconvert.images`, with the same rounding, and loads
the engine with the session settings of its backend.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from string import Template

from qconvert import backends
from qconvert.backends.base import Engine, LoadSpec
from qconvert.backends.cpu import PROVIDER, QUANT_PRECISION_ENTRY
from qconvert.backends.int8_class import ARM_MACHINES, EXACT_FLAGS, X86_MACHINES
from qconvert.core.errors import UsageError
from qconvert.core.tensors import fixed_batch
from qconvert.images.listing import CLASSES_FILE
from qconvert.images.preprocess import LETTERBOX_LEVEL, Preprocess
from qconvert.package import bundle as bundles
from qconvert.package.bundle import Bundle
from qconvert.report.markdown import escape_text

RESIZED_AND_CROPPED = Template("""\
    scaled = $scaled
    if any(whole $unfit part for whole, part in zip(scaled, size)):
        sys.exit(f"{file}: {image.width}x{image.height} does not fit")
    # Resize only the part of the image that the crop leaves.
    factors = [whole / part for whole, part in zip(image.size, scaled)]
    left, top = (round((whole - part) / 2) for whole, part in zip(scaled, size))
    right = min((left + size[0]) * factors[0], image.width)
    bottom = min((top + size[1]) * factors[1], image.height)
    image = image.resize(size, method, (left * factors[0], top * factors[1], right, bottom))""")

RESIZED_LETTERBOX = f"""\
    # All of the image, in the middle of a gray box.
    scale = min(part / whole for part, whole in zip(size, image.size))
    scaled = [max(1, round(side * scale)) for side in image.size]
    corner = tuple((part - whole) // 2 for part, whole in zip(size, scaled))
    box = Image.new(image.mode, size, ({LETTERBOX_LEVEL},) * len(image.getbands()))
    box.paste(image.resize(scaled, method), corner)
    image = box"""

INTEGER_LINES = f"""\
# CPUs without these instructions multiply bytes in 16 bits, which overflow in this default mode.
cpu = Path("/proc/cpuinfo")
flags = set(cpu.read_text().split()) if cpu.exists() else set()
exact = "0" if flags & {{{", ".join(f'"{flag}"' for flag in EXACT_FLAGS)}}} else "1"
options.add_session_config_entry("{QUANT_PRECISION_ENTRY}", exact)"""

# By how an engine of the CPU stores its activations: the other architecture is slower with them.
ARCHITECTURE_LINES = {
    sign: f"""\
import platform

if platform.machine().lower() in {names}:
    print("quantized for {own}: right, but not at its best on {other}", file=sys.stderr)"""
    for sign, own, other, names in (
        ("unsigned", "x86", "ARM", ARM_MACHINES),
        ("signed", "ARM", "x86", X86_MACHINES),
    )
}

PLUGIN_LINES = """\
# Nothing else finds the CUDA runtime that lies beside the plugin.
for library in Path(plugin.__file__).parent.glob("libcudart.so.*"):
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)"""

PLUGIN_SESSION = Template("""\
onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
# By the numbers that CUDA gives them.
devices = {
    device.memory_info(onnxruntime.OrtDeviceMemoryType.DEFAULT).device_id: device
    for device in onnxruntime.get_ep_devices()
    if device.ep_name == "$provider"
}
if $device not in devices:
    sys.exit("$provider does not run on GPU $device")
provider_options = $options
$kernels
options.add_provider_for_devices([devices[$device]], provider_options)
session = onnxruntime.InferenceSession(str(HERE / $file), options, enable_fallback=0)
""")

KERNEL_LINES = Template("""\
if os.access(HERE, os.W_OK):  # keep the kernels that the GPU compiles at the first load
    provider_options["$option"] = str(HERE / "kernels")""")

PROFILE_LINES = Template("""\
PROFILES = $profiles  # the smallest, best and largest batch of each


def run_options(feeds):
    # The profile that is tuned closest to the batch.
    batch = len(next(iter(feeds.values())))
    fitting = [
        (abs(best - batch), largest - smallest, number)
        for number, (smallest, best, largest) in enumerate(PROFILES)
        if smallest <= batch <= largest
    ]
    if not fitting:
        sys.exit(f"no profile takes a batch of {batch}")
    chosen = onnxruntime.RunOptions()
    chosen.add_run_config_entry("$entry", str(min(fitting)[-1]))
    return chosen

""")

PRINT_SCORES = Template("""\
for file in files:
    feeds = $feeds
    scores = session.run([$output], feeds$run_options)[0][0].ravel()
    for number in scores.argsort()[::-1][:5]:
        print(f"{file}: $class_name {scores[number]:.6g}")""")

PRINT_OUTPUTS = Template("""\
for file in files:
    feeds = $feeds
    for output, array in zip(session.get_outputs(), session.run(None, feeds$run_options)):
        print(f"{file}: {output.name} {array.shape}, {array.min():.6g} to {array.max():.6g}")""")


def write(bundle: Bundle, folder: Path) -> tuple[str, ...]:
    """Write the folder."""
    engine = bundle.engine
    spec = backends.load(engine.backend).load_spec(engine)
    if spec.cuda_graph:
        raise UsageError(
            "an engine with a CUDA graph needs bound memory and runs only in qconvert",
            hint="build it again without `cuda-graph`",
        )
    for name in engine.files:
        shutil.copyfile(engine.folder / name, folder / name)
    (folder / "run.py").write_text(run_script(bundle, spec), encoding="utf-8")
    for package in spec.packages:
        # A name, extras and releases, and nothing that a shell would run.
        if not re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?([<>=!~]{1,2}[\w.,<>=!~+*-]+)?", package):
            raise UsageError(
                f"the engine was built with `{package}`, not a package name with a version",
                hint="build the engine again: its `engine.json` was changed",
            )
    has_images, runtime = bundle.preparation is not None, engine.made_with.get("runtime", "")
    packages = [*(f'"{package}"' for package in spec.packages), "numpy", *["pillow"] * has_images]
    bundles.write_documents(
        bundle,
        folder,
        "onnxruntime.md.tmpl",
        CLASSES_FILE,
        packages=" ".join(packages),
        example="IMAGE.jpg" if has_images else "ARRAYS.npz",
        origin=escape_text(f"; it was built with {runtime}") if runtime else "",
    )
    return ()


def run_script(bundle: Bundle, spec: LoadSpec) -> str:
    """Return the program."""
    code = {"name": bundle.name, "session": session_code(bundle.engine, spec)}
    run_options = ", run_options(feeds)" if spec.profiles else ""
    if bundle.preparation is None:
        loop = PRINT_OUTPUTS.substitute(feeds="read_arrays(file)", run_options=run_options)
        return bundles.fill_template("run_arrays.py.tmpl", **code, loop=loop)
    preprocess, image_input = bundle.preparation
    batch = fixed_batch(bundle.inputs) or 1
    array = "read_image(file)" if batch == 1 else f"np.repeat(read_image(file), {batch}, 0)"
    feeds = f'{{PREPROCESS["input"]: {array}}}'
    if bundle.scores is None:
        loop = PRINT_OUTPUTS.substitute(feeds=feeds, run_options=run_options)
    else:
        class_name = "{CLASSES[number]}" if bundle.classes else "class {number}"
        output = python_string(bundle.scores.name)
        loop = PRINT_SCORES.substitute(
            output=output, feeds=feeds, class_name=class_name, run_options=run_options
        )
    if bundle.classes:
        names = '(HERE / "classes.txt").read_text(encoding="utf-8").splitlines()'
        loop = f"CLASSES = {names}\n\n{loop}"
    return bundles.fill_template(
        "run_images.py.tmpl",
        **code,
        mode="L" if image_input.channels == 1 else "RGB",
        resized=RESIZED_LETTERBOX if preprocess.letterbox else resized_code(preprocess),
        order="[..., ::-1]" if preprocess.colours == "bgr" else "",
        layout=".transpose(2, 0, 1)" if image_input.layout == "nchw" else "",
        loop=loop,
    )


def resized_code(preprocess: Preprocess) -> str:
    """Return code that resizes and crops an `image` to its `size`."""
    scaled = 'PREPROCESS["resize"]' if isinstance(preprocess.resize, tuple) else "image.size"
    if isinstance(preprocess.resize, int):
        scaled = '[int(PREPROCESS["resize"] * side / min(image.size)) for side in image.size]'
    unfit = "!=" if preprocess.crop == "none" else "<"
    return RESIZED_AND_CROPPED.substitute(scaled=scaled, unfit=unfit)


def python_string(text: str) -> str:
    """Return a Python literal for an untrusted name, which cannot terminate it."""
    # Not as JSON, which spells an emoji as two surrogates; Python would read two characters.
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'


def option_lines(spec: LoadSpec) -> list[str]:
    """Return lines that make the `options` of a session."""
    lines = ["options = onnxruntime.SessionOptions()", "options.log_severity_level = 3"]
    if spec.threads:
        lines.append(f"options.intra_op_num_threads = {spec.threads}")
    if not spec.optimize_graph:
        level = "onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL"
        lines.append(f"options.graph_optimization_level = {level}")
    for key, value in spec.config_entries.items():
        entry = f"{python_string(key)}, {python_string(value)}"
        lines.append(f"options.add_session_config_entry({entry})")
    if spec.may_saturate:
        lines.append(INTEGER_LINES)
    return lines


def session_code(engine: Engine, spec: LoadSpec) -> str:
    """Return code that opens a `session` on the files in `HERE`."""

    def literal(options: Mapping[str, str]) -> str:
        """Return options as Python; the engine's folder becomes the folder of the script."""
        pairs = (
            f'"{key}": {"str(HERE)" if value == str(engine.folder.absolute()) else repr(value)}'
            for key, value in options.items()
        )
        return "{" + ", ".join(pairs) + "}"

    file, (provider, provider_options) = python_string(engine.files[0]), spec.providers[0]
    lines = []
    if spec.plugin:
        lines += ["import ctypes", "import os", ""]
        lines += [f"import {spec.plugin} as plugin", "", PLUGIN_LINES]
    elif provider != PROVIDER:
        lines += ['if hasattr(onnxruntime, "preload_dlls"):', "    onnxruntime.preload_dlls()"]
    # They take the CUDA libraries that are loaded.
    lines += [f"import {module}  # for its libraries" for module in spec.modules]
    lines += option_lines(spec)
    if (sign := engine.made_with.get("activations", "")) in ARCHITECTURE_LINES:
        lines.insert(0, ARCHITECTURE_LINES[sign])
    if spec.plugin:
        is_chosen = not spec.kernel_cache or spec.kernel_cache in provider_options
        kernels = "" if is_chosen else KERNEL_LINES.substitute(option=spec.kernel_cache)
        session = PLUGIN_SESSION.substitute(
            provider=provider,
            device=spec.device,
            options=literal(provider_options),
            kernels=kernels,
            file=file,
        )
        profiles = [astuple(profile) for profile in spec.profiles]
        choice = PROFILE_LINES.substitute(profiles=profiles, entry=spec.profile_entry)
        return "\n".join([*lines, session, *([choice] if profiles else [])])
    providers = ", ".join(
        f'("{name}", {literal(options)})' if options else f'"{name}"'
        for name, options in spec.providers
    )
    no_fallback = "" if provider == PROVIDER else ", enable_fallback=0"
    lines.append(f"""\
session = onnxruntime.InferenceSession(
    str(HERE / {file}), options, providers=[{providers}]{no_fallback}
)
""")
    if provider != PROVIDER:
        lines.append(f"""\
if session.get_providers()[0] != "{provider}":
    sys.exit("{provider} did not start")
""")
    return "\n".join(lines)
