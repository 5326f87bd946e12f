"""The Python that loads an engine with ONNX Runtime, with the settings that its backend gives."""

from collections.abc import Iterator, Mapping
from string import Template

from qconvert.backends.base import Engine
from qconvert.backends.cpu import EXACT, PROVIDER
from qconvert.backends.installed import INTEGER_FLAGS
from qconvert.backends.outside import Loading

INTEGERS = """\
# CPUs without these instructions multiply bytes in 16 bits, which overflow unless told so.
cpu = Path("/proc/cpuinfo")
flags = set(cpu.read_text().split()) if cpu.exists() else set()
exact = "0" if flags & {FLAGS} else "1"
options.add_session_config_entry("KEY", exact)
"""

PLUGIN = Template("""\
onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
devices = [each for each in onnxruntime.get_ep_devices() if each.ep_name == "$provider"]
options.add_provider_for_devices(devices[:1], $own)
session = onnxruntime.InferenceSession(str(HERE / $file), options)
""")

PROVIDED = Template("""\
session = onnxruntime.InferenceSession(
    str(HERE / $file), options, providers=[$providers]
)
""")

STARTED = Template("""\
if session.get_providers()[0] != "$provider":
    sys.exit("$provider did not start")
""")


def session(engine: Engine, found: Loading) -> str:
    """Return code that ends with a `session`; it knows `HERE`, the folder it stands in."""
    return "".join([*_imports(found), *_settings(found), *_start(engine, found)])


def quoted(text: str) -> str:
    """Return a name from a file as Python, which it cannot leave."""
    # Not as JSON, which spells an emoji as two halves; Python would take them for two characters.
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'


def _imports(found: Loading) -> Iterator[str]:
    yield from (f"import {module}  # its libraries are looked for\n" for module in found.modules)
    if found.plugin:
        yield f"import {found.plugin} as plugin\n\n"
    elif found.providers[0][0] != PROVIDER:
        yield 'if hasattr(onnxruntime, "preload_dlls"):\n    onnxruntime.preload_dlls()\n'


def _settings(found: Loading) -> Iterator[str]:
    yield "options = onnxruntime.SessionOptions()\noptions.log_severity_level = 3\n"
    if found.threads:
        yield f"options.intra_op_num_threads = {found.threads}\n"
    if not found.optimized:
        level = "onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL"
        yield f"options.graph_optimization_level = {level}\n"
    for key, value in found.entries.items():
        yield f"options.add_session_config_entry({quoted(key)}, {quoted(value)})\n"
    if found.integers:
        flags = ", ".join(f'"{flag}"' for flag in INTEGER_FLAGS)
        yield INTEGERS.replace("FLAGS", flags).replace("KEY", EXACT)


def _start(engine: Engine, found: Loading) -> Iterator[str]:
    folder, file = str(engine.folder), quoted(engine.files[0])
    first, own = found.providers[0]
    if found.plugin:
        yield PLUGIN.substitute(provider=first, own=_options(own, folder), file=file)
        return
    listed = (
        f'("{name}", {_options(given, folder)})' if given else f'"{name}"'
        for name, given in found.providers
    )
    yield PROVIDED.substitute(file=file, providers=", ".join(listed))
    if first != PROVIDER:
        yield STARTED.substitute(provider=first)


def _options(own: Mapping[str, str], folder: str) -> str:
    """Write options as Python; where they name the engine's folder, the script's is meant."""
    pairs = (
        f'"{key}": {"str(HERE)" if value == folder else repr(value)}' for key, value in own.items()
    )
    return "{" + ", ".join(pairs) + "}"
