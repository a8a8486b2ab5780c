"""Frozen matrices as int8 with a float32 scale for each of their columns: half the memory of bfloat16.

Products stay in the dtype of computation (layers.int8_product). Symmetric, for each output channel, as AQT and qwix keep weights: the
largest number of a column becomes 127. Those libraries quantise a module's products as it is traced; here weights come array by array.
"""

import numpy as np

from mpt_jax.sharding import AxisTable

KERNEL, SCALE = "kernel", "int8_scale"  # of a product's parameters: int8 (rows, columns) and float32 (columns,)
LARGEST = 127


def is_kernel(path: str) -> bool:
    """Whether a parameter of a backbone is the matrix of a product; embeddings, norms and biases stay as they are."""
    return path.rpartition("/")[2] == KERNEL


def scale_path(path: str) -> str:
    """Path of the scale that belongs to a kernel's path."""
    return path.removesuffix(KERNEL) + SCALE


def scale_axes(table: AxisTable) -> AxisTable:
    """Rows for the scales of a family's table of axes: they lie as the columns of their kernels do."""
    return tuple((scale_path(pattern), axes[-1:]) for pattern, axes in table if is_kernel(pattern))


def quantised(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest int8 matrix and its columns' scales: int8 (rows, columns), float32 (columns,).

    >>> quantised(np.array([[1.0, 0.0], [-2.0, 0.0]], np.float32))
    (array([[  64,    0],
           [-127,    0]], dtype=int8), array([0.01574803, 0.        ], dtype=float32))
    """
    scale = np.abs(kernel).max(axis=0).astype(np.float32) / np.float32(LARGEST)
    return np.rint(kernel / np.where(scale > 0, scale, 1)).astype(np.int8), scale
