"""One INT8 file gives the same answers on every CPU, and a file without limited pairs does not."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.quantize.saturation import is_pair_safe
from tests.any_cpu import environment, networks
from tests.any_cpu.conftest import RunAs
from tests.any_cpu.environment import File

pytestmark = [
    pytest.mark.timeout(900),  # on a busy host QEMU is slow
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

Files = Mapping[tuple[str, str], File]
# Kernels for floats, for requantization and for pooling round differently: the last bit of an
# integer may differ, which is 0.4 % of a tensor's range.
ROUNDING_DB = 40.0
SATURATED_DB = 30.0


@pytest.fixture(
    scope="module", params=[networks.SMALL, pytest.param(networks.LARGE, marks=pytest.mark.long)]
)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return dict(networks.int8_files(request.param, tmp_path_factory.mktemp("networks")))


def test_files_give_the_same_answers_where_they_should(
    cpu: str, files: Files, run_as: RunAs
) -> None:
    machine = environment.CPUS[cpu].machine
    here = {
        " ".join(key): file
        for key, file in files.items()
        if machine == "aarch64" or key[1] != "arm"
    }
    outputs = run_as(cpu, here)
    for name, file in here.items():
        (output,) = outputs[name].values()
        (expected,) = open_cpu(ir.from_proto(file.model))(file.feeds).values()
        agreement = agreement_db(output, expected)
        if environment.is_saturating(cpu) and "exact" in name:
            assert agreement < SATURATED_DB, name
        else:
            assert agreement > ROUNDING_DB, name
            if name.startswith("demo"):
                assert (output.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_portable_files_are_proven_safe(files: Files) -> None:
    safe = {key: is_pair_safe(ir.from_proto(file.model)) for key, file in files.items()}
    assert {kind for (_, kind), is_safe in safe.items() if is_safe} == {"portable"}
    assert all(is_safe for (_, kind), is_safe in safe.items() if kind == "portable")


def agreement_db(output: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the ratio of a result to its difference from another, in decibels."""
    noise = np.square(output.astype(np.float64) - expected).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / max(noise, 1e-30)))
