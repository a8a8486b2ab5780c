"""What the tests of hostile files share: a read that must be refused within bounds, and sound backbones to damage."""

import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bounds import within_bounds
from fixture_folders import TINY, random_params

from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.formats.arrays import LazyArray

SMALL = dataclasses.replace(TINY, num_encoder_layers=1, num_decoder_layers=1)


def load(path) -> dict:
    """All weights of a backbone."""
    return formats.restore(formats.read_backbone(path)[1])


def refused(read: Callable[[], object], match: str) -> None:
    """read() raises UserError with one short line that matches, within the bounds."""
    with within_bounds(), pytest.raises(UserError, match=match) as caught:
        read()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def unchecked(array: np.ndarray) -> LazyArray:
    """An array that may be written although it holds NaN."""

    class Unchecked(LazyArray):
        load = LazyArray.read

    def fill(out, index):
        out[...] = array[index]

    return Unchecked(array.shape, array.dtype, "x", fill)


def write_sound(folder: Path) -> Path:
    """A sound backbone of each kind in a folder."""
    for kind in ("hf", "own", "t5x", "orbax"):
        formats.write_backbone(kind, folder / kind, SMALL, random_params(SMALL))
    return folder


def bomb(path: Path, member: str, others: dict[str, bytes], mebibytes: int) -> None:
    """A zip file with a member of so many MiB of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in others.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        with archive.open(member, "w", force_zip64=True) as file:
            file.write(npy_header((mebibytes * 2**18,)))
            for _ in range(mebibytes):
                file.write(bytes(2**20))


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The head of a .npy file of float32."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue()
