"""Code that opens the session of an engine with the settings that it was measured with."""

from collections.abc import Mapping
from dataclasses import astuple
from string import Template

from qconvert.backends.base import Engine, LoadSpec
from qconvert.backends.cpu import PROVIDER, QUANT_PRECISION_ENTRY
from qconvert.backends.int8_class import ARM_MACHINES, EXACT_FLAGS, X86_MACHINES

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
