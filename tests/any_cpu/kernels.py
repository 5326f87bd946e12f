"""NumPy models of the integer kernels of MLAS, ONNX Runtime's matrix library.

All take activations [rows, K] and weights [channels, K] in the order of the kernel, and return the
sums that the kernel computes, as [rows, channels].
"""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8 | np.int8]


def exact(activations: Bytes, weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """Kernels of CPUs with VNNI, AMX or dotprod, and of SSE2: every product in 32 bits."""
    return np.asarray(activations.astype(np.int32) @ weights.astype(np.int32).T)


def avx2(activations: Bytes, weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """AVX2 and AVX-512 without VNNI: VPMADDUBSW adds products 2i and 2i + 1 and saturates."""
    pairs = _products(activations, weights, 2).sum(axis=-1)
    return np.asarray(np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=-1, dtype=np.int32))


def neon(activations: Bytes, weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """ARM without dotprod: SMULL and SMLAL add products i and i + 8 of 16 and wrap around.

    aarch64/QgemmS8S8KernelNeon.S and ConvSymS8KernelNeon.S do so.
    """
    blocks = _products(activations, weights, 16)
    pairs = blocks[..., :8] + blocks[..., 8:]
    return np.asarray(pairs.astype(np.int16).sum(axis=(-2, -1), dtype=np.int32))


def _products(activations: Bytes, weights: NDArray[np.int8], block: int) -> NDArray[np.int32]:
    """Return [rows, channels, blocks, block]; zeros fill the last block."""
    products = activations.astype(np.int32)[:, np.newaxis] * weights.astype(np.int32)
    missing = -products.shape[-1] % block
    padded = np.pad(products, ((0, 0), (0, 0), (0, missing)))
    return padded.reshape(*products.shape[:-1], -1, block)
