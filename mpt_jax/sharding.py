"""Where arrays live on many devices: a mesh of three axes and ONE table from logical axis name to mesh axis.

A parameter's path gives its logical axes (T5X's names) by the tables of its family and method; RULES give the mesh axes. A dimension
that its mesh axis does not divide is kept whole on that axis, so that tiny models run on any mesh. The batch is split over ``data`` and
``fsdp``, frozen weights over ``fsdp`` and ``tensor``; a method's parameters and the optimiser's state are on every device, or split over
tasks once they are large. Everything here works from shapes alone, with devices that are not there as well.
B examples, N tasks of the program.
"""

import contextlib
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mpt_jax.config import MeshSettings
from mpt_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
GPU_PLATFORMS = ("gpu", "cuda", "rocm")  # JAX's names for them
TASK_AXES = ("task",)  # of a method's arrays, whose first axis counts tasks or groups
LARGE_BANK_BYTES = 2**28  # of one array of the bank (870 float32 prompts of T5-Base): from there it is split over its tasks [ours]

RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "joined_kv": ("tensor",),
    "heads": ("tensor",),
    "relpos_buckets": (),
    "scale": (),  # of a norm: too small to be worth gathering
    "task": BATCH_AXES,  # of a bank from LARGE_BANK_BYTES on
    "prompt": (),
    # activations
    "batch": BATCH_AXES,
    "length": (),
    "activation_embed": (),
    "kv": (),
}

# rows (regular expression of a parameter's path, logical axes of its last dimensions); the first that matches wins
AxisTable = tuple[tuple[str, tuple[str | None, ...]], ...]


def mesh_shape(settings: MeshSettings, devices: int) -> tuple[int, int, int]:
    """Sizes of AXES over so many devices. Raises UserError where the numbers do not fit."""
    rest = settings.fsdp * settings.tensor
    data = settings.data or devices // rest
    if data * rest != devices or not data:
        asked = f"MESH_DATA = {settings.data}, MESH_FSDP = {settings.fsdp}, MESH_TENSOR = {settings.tensor}"
        if settings.data:
            wanted = f"their product is {data * rest}, and there are {devices} devices"
        else:
            wanted = f"MESH_FSDP * MESH_TENSOR = {rest} does not divide the {devices} devices"
        raise UserError(f"{asked}: {wanted}; change them (MESH_DATA = 0 takes what is left).")
    return data, settings.fsdp, settings.tensor


def make_mesh(settings: MeshSettings, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the given devices (default: all of all processes). Raises UserError where the numbers do not divide them."""
    try:
        devices = jax.devices() if devices is None else list(devices)
    except RuntimeError as error:  # JAX_PLATFORMS names what is not here
        raise UserError(f"JAX finds no devices: {error}") from error
    shape = mesh_shape(settings, len(devices))
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)


def mesh_or_none(settings: MeshSettings) -> Mesh | None:
    """The mesh of a command; None on one device, where nothing is to be placed."""
    mesh = make_mesh(settings)
    return mesh if mesh.size > 1 else None


def use(mesh: Mesh | AbstractMesh | None) -> contextlib.AbstractContextManager:
    """Context in which ``constrain`` sees the mesh; programs are traced and called within. It places nothing by itself."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh)


def target_device() -> Any:
    """A device the program under way will run on, there or not: its ``platform`` and ``device_kind``."""
    return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]


def _spec(sizes: dict[str, int], shape: Sequence[int], logical_axes: Sequence[str | None]) -> PartitionSpec:
    """Mesh axes of each dimension; those that do not divide it are left out. logical_axes are the last ones of the shape."""
    parts: list[tuple[str, ...] | None] = [None] * (len(shape) - len(logical_axes))
    for size, name in zip(shape[len(parts) :], logical_axes, strict=True):
        axes = RULES[name] if name else ()
        parts.append(axes if axes and size % math.prod(sizes[axis] for axis in axes) == 0 else None)
    return PartitionSpec(*parts)


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Tells the compiler where an array of a program lives, by the names of its last dimensions; without names: whole on every device.

    Nothing happens outside of ``use(mesh)``, nor in another trainer's mesh with axes of its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(dict(mesh.shape), x.shape, logical_axes))


def parts_of(name: str, size: int) -> int:
    """Parts that ``constrain`` cuts a dimension of this logical axis into."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES:
        return 1
    parts = math.prod(mesh.shape[axis] for axis in RULES[name])
    return parts if size % parts == 0 else 1


def each_device(function: Callable, axes_in: Sequence[Sequence[str | None]], axes_out: Sequence[Sequence[str | None]]) -> Callable:
    """``function`` of a device's own parts of arrays, for what the compiler cannot cut into parts itself; axes by name as in ``constrain``.

    It takes as many arrays as axes_in has rows and returns a list; results have the shapes of its first arrays. As ``constrain`` it changes
    nothing where there is no mesh of ours.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES:
        return function
    sizes = dict(mesh.shape)

    def on_parts(*arrays):
        specs = tuple(_spec(sizes, array.shape, axes) for array, axes in zip(arrays, axes_in, strict=True))
        results = [_spec(sizes, array.shape, axes) for array, axes in zip(arrays, axes_out, strict=False)]
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=results, check_vma=False)(*arrays)

    return on_parts


def constrain_whole(tree: Any) -> Any:
    """Every array of a tree whole on every device, so that each process can read it."""
    return jax.tree.map(constrain, tree)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the arrays of parameters live: a mesh, or None on one device, and the table of their axes.

    Trees are keyed by parameter paths somewhere: trainable, frozen, sums, optimiser state.
    """

    mesh: Mesh | AbstractMesh | None
    axes: AxisTable

    @property
    def devices(self) -> Mesh | None:
        """The mesh of real devices. Programs that are only compiled have none to run on."""
        assert not isinstance(self.mesh, AbstractMesh)
        return self.mesh

    def axes_of(self, path: str) -> tuple[str | None, ...] | None:
        """Logical axes of a parameter (``backbone/encoder/…`` or ``encoder/…``); None for a path that no row covers."""
        return next((axes for pattern, axes in self.axes if re.fullmatch(pattern, path)), None)

    def _spec(self, sizes: dict[str, int], path: str, shape: Sequence[int]) -> PartitionSpec:
        axes = self.axes_of(path)
        if axes is None:
            raise UserError(f"parameter {path!r} has no row in the table of axes of its family or method; add one.")
        if axes != TASK_AXES:
            return _spec(sizes, shape, axes) if len(shape) >= len(axes) else PartitionSpec()
        if 4 * math.prod(shape) < LARGE_BANK_BYTES:
            return PartitionSpec()
        return _spec(sizes, shape, ("task", *[None] * (len(shape) - 1)))

    def _leaf_spec(self, sizes: dict[str, int], keys: Sequence[Any], shape: Sequence[int]) -> PartitionSpec:
        """Spec of a leaf; those that no path leads to are replicated.

        Moments of a method's array (N, ...) have groups in front, (G, N / G, ...): then the groups are split.
        """
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str)]
        path = next((name for name in (*names, "/".join(names)) if self.axes_of(name) is not None), None)  # flat, or nested
        return PartitionSpec() if path is None else self._spec(sizes, path, shape)

    def sharding(self, path: str, shape: Sequence[int]) -> NamedSharding:
        """Sharding of a parameter by its path. Raises UserError for a path that no row covers."""
        return NamedSharding(self.mesh, self._spec(dict(self.mesh.shape), path, shape))

    def of_backbone(self) -> Callable[[str, tuple[int, ...]], NamedSharding] | None:
        """What load_backbone takes to restore straight onto the mesh's shards."""
        return None if self.mesh is None else self.sharding

    def shardings(self, tree: Any) -> Any:
        """NamedSharding of each leaf (array or ShapeDtypeStruct) of a tree."""
        sizes = dict(self.mesh.shape)

        def of_leaf(keys, leaf):
            return NamedSharding(self.mesh, self._leaf_spec(sizes, keys, np.shape(leaf)))

        return jax.tree_util.tree_map_with_path(of_leaf, tree)

    def constrain(self, tree: Any) -> Any:
        """As ``shardings``, for results inside a program."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.axis_names != AXES:
            return tree
        sizes = dict(mesh.shape)

        def constrain_leaf(keys, leaf):
            return jax.lax.with_sharding_constraint(leaf, self._leaf_spec(sizes, keys, leaf.shape))

        return jax.tree_util.tree_map_with_path(constrain_leaf, tree)

    def put(self, tree: Any) -> Any:
        """Host arrays of a tree onto the mesh; arrays that lie right already stay. Without a mesh nothing moves."""
        if self.mesh is None:
            return tree

        def put_leaf(leaf, sharding):
            there = isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
            return leaf if there else put_array(sharding, np.asarray(leaf))

        return jax.tree.map(put_leaf, tree, self.shardings(tree))


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Sharding of an array whose first dimension are the examples."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"], *[None] * (ndim - 1)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | None) -> int:
    """Parts that the examples of a micro-batch are cut into."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES["batch"])


def whole_rows(mesh: Mesh | None, rows: int, setting: str = "") -> int:
    """``rows`` rounded up to what the mesh divides; missing rows are filler. ``setting``: told on the terminal if it was rounded."""
    shards = batch_shards(mesh)
    rounded = -(-rows // shards) * shards
    if setting and rounded != rows and jax.process_index() == 0:
        print(f"{setting} = {rows} rounded up to {rounded}: {shards} parts of the mesh share a batch", file=sys.stderr)
    return rounded


def local_rows(mesh: Mesh | None, rows: int) -> tuple[int, ...] | None:
    """Rows of a batch that this process holds, ascending; None = all of them."""
    if mesh is None or not mesh.is_multi_process:
        return None
    held = np.zeros(rows, bool)
    for (part,) in batch_sharding(mesh, 1).addressable_devices_indices_map((rows,)).values():
        held[part] = True
    return tuple(int(row) for row in np.flatnonzero(held))


def put_array(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
    """A host array on its devices; with several processes each gives the parts of its own devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_rows(mesh: Mesh | None, array: np.ndarray) -> jax.Array | np.ndarray:
    """An array of examples (B, ...) split over the mesh; without one it stays."""
    return array if mesh is None else put_array(batch_sharding(mesh, array.ndim), array)


def put_micro_batch(mesh: Mesh | None, micro: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A micro-batch on the devices: examples split, what belongs to its different tasks (names that end in ``_U``) whole on each."""
    if mesh is None:
        return dict(micro)
    whole = replicated(mesh)
    return {name: put_array(whole, array) if name.endswith("_U") else put_rows(mesh, array) for name, array in micro.items()}


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array as numpy, gathered from all processes where it is split among them (all of them must call); tracers stay."""
    if isinstance(array, jax.core.Tracer):
        return array
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    gather = jax.jit(lambda x: x, out_shardings=replicated(array.sharding.mesh))
    return np.asarray(gather(array))
