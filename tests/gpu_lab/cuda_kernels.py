"""Write qconvert/backends/cuda_kernels.txt: the CUDA kernels of the wheel of onnxruntime-gpu.

`make gpu-lab-kernels` reads its registry on a machine of the laboratory, where the provider loads.
"""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from qconvert.backends.cuda import KERNELS
from tests.gpu_lab.lab.environment import Host, make_host

PRECISIONS = {"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(bfloat16)": "bf16"}


def kernel_table() -> str:
    """Return a line for each operator and range of opsets: the precisions by type constraint."""
    import onnxruntime
    from onnxruntime.capi import _pybind_state

    onnxruntime.preload_dlls()
    import tensorrt  # type: ignore[import-not-found]  # noqa: F401  its provider is asked too

    rows: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for kernel in _pybind_state.get_all_opkernel_def():
        if kernel.provider != "CUDAExecutionProvider" or kernel.domain not in ("", "ai.onnx"):
            continue
        first, last = kernel.version_range
        opsets = f"{first}-{last if last < 2**31 - 1 else ''}"
        constraints = rows[kernel.op_name, opsets]
        for name, types in kernel.type_constraints.items():
            constraints[name] |= {PRECISIONS[item] for item in types if item in PRECISIONS}
    float_constraints = {
        (op, name) for (op, _), row in rows.items() for name, types in row.items() if types
    }
    lines = [f"# onnxruntime-gpu {onnxruntime.__version__}"]
    for (op, opsets), row in sorted(rows.items(), key=lambda item: _order(*item[0])):
        columns = [
            f"{name}={','.join(p for p in PRECISIONS.values() if p in types)}"
            for name, types in sorted(row.items())
            if (op, name) in float_constraints
        ]
        lines.append(" ".join((op, opsets, *columns)))
    return "\n".join(lines)


def _order(op: str, opsets: str) -> tuple[str, int]:
    return op, int(opsets.split("-", maxsplit=1)[0])


def read_on(machine: Host, cwd: Path) -> str:
    """Return the table of the wheel on a machine."""
    done = machine.run("-m", "tests.gpu_lab.cuda_kernels", "print", cwd=cwd)
    assert done.code == 0, done.err
    return done.out


if __name__ == "__main__":
    if sys.argv[1:] == ["print"]:
        sys.stdout.write(kernel_table() + "\n")
    else:
        with tempfile.TemporaryDirectory() as folder:
            machine = Host(make_host(Path(folder) / "machine"))
            KERNELS.write_text(read_on(machine, Path(folder)), encoding="utf-8")
