"""all-MiniLM-L6-v2 in JAX, from its weights rounded to few levels: sentence vectors where neither torch nor the package is.

Letters: B texts, L word pieces, D width 384, H heads, K head width, V word pieces in use.
"""

import json
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

HEADS, EPSILON = 12, 1e-12
LEVELS = 8  # steps within a standard deviation of a row of weights
LONGEST = 96  # word pieces, as benchmarks.nano.vectors
SHAPES = (16, 32, LONGEST)  # padded lengths
BATCH = 1024
WORDS, PLACES, KIND = (f"embeddings.{part}_embeddings.weight" for part in ("word", "position", "token_type"))


def rounded(weights: dict[str, np.ndarray], used_V: np.ndarray) -> dict[str, np.ndarray]:
    """Matrices as int8 multiples of a step for each row (``NAME.step``), the rest as float16; of the word pieces those in use."""
    found = {}
    for name, array in weights.items():
        if name.startswith("pooler") or name.endswith("position_ids"):
            continue
        array = array[used_V] if name == WORDS else array[:LONGEST] if name == PLACES else array
        if array.ndim < 2 or name in (PLACES, KIND):
            found[name] = array.astype(np.float16)
            continue
        step = (array.std(axis=1) / LEVELS).astype(np.float16)
        found[name] = np.clip(np.rint(array / step.astype(np.float32)[:, None]), -127, 127).astype(np.int8)
        found[f"{name}.step"] = step
    return found


def restored(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float32 weights of ``rounded``."""
    found = {name: array.astype(np.float32) for name, array in arrays.items() if not name.endswith(".step")}
    for name in found:
        if f"{name}.step" in arrays:
            found[name] *= arrays[f"{name}.step"].astype(np.float32)[:, None]
    return found


def tokenizer_of(tokenizer_json: str):
    """The tokenizer, cutting at LONGEST word pieces. Its own file pads, which is turned off."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def _norm(x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPSILON) * weight + bias


def _layer(x_BLD, mask_B11L, layer):
    def dense(x, name):
        return x @ layer[f"{name}.weight"].T + layer[f"{name}.bias"]

    def heads(x):
        return x.reshape(*x.shape[:2], HEADS, -1)

    query, key, value = (heads(dense(x_BLD, f"attention.self.{name}")) for name in ("query", "key", "value"))
    logits_BHLL = jnp.einsum("BTHK,BSHK->BHTS", query, key) * query.shape[-1] ** -0.5 + mask_B11L
    mixed_BLD = jnp.einsum("BHTS,BSHK->BTHK", jax.nn.softmax(logits_BHLL), value).reshape(x_BLD.shape)
    norm, name = "attention.output.LayerNorm", "attention.output.dense"
    x_BLD = _norm(x_BLD + dense(mixed_BLD, name), layer[f"{norm}.weight"], layer[f"{norm}.bias"])
    hidden = jax.nn.gelu(dense(x_BLD, "intermediate.dense"), approximate=False)
    return _norm(x_BLD + dense(hidden, "output.dense"), layer["output.LayerNorm.weight"], layer["output.LayerNorm.bias"])


def embed(outer, layers, ids_BL, length_B):
    """Unit vectors (B, D): the mean of the last states of each text's word pieces."""
    real_BL = jnp.arange(ids_BL.shape[1]) < length_B[:, None]
    x_BLD = outer[WORDS][ids_BL] + outer[PLACES][: ids_BL.shape[1]] + outer[KIND][0]
    x_BLD = _norm(x_BLD, outer["embeddings.LayerNorm.weight"], outer["embeddings.LayerNorm.bias"])
    mask_B11L = jnp.where(real_BL, 0.0, -1e9)[:, None, None, :]
    x_BLD, _ = jax.lax.scan(lambda x, layer: (_layer(x, mask_B11L, layer), None), x_BLD, layers)
    mean_BD = jnp.sum(x_BLD * real_BL[..., None], axis=1) / jnp.maximum(length_B[:, None], 1)
    return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=1, keepdims=True), 1e-9)


def vectors_of(texts: Sequence[str], tokenizer, used_V: np.ndarray, arrays: dict[str, np.ndarray], batch: int = BATCH) -> np.ndarray:
    """(texts, D) float16. ``used_V``: the word pieces that ``arrays`` (of ``rounded``) hold, ascending."""
    weights = restored(arrays)
    names = {name.split(".", 3)[3] for name in weights if name.startswith("encoder.layer.")}
    count = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    layers = {name: jnp.stack([weights[f"encoder.layer.{at}.{name}"] for at in range(count)]) for name in names}
    outer = {name: jnp.asarray(array) for name, array in weights.items() if name.startswith("embeddings.")}
    ids = [np.searchsorted(used_V, found.ids).astype(np.int32) for found in tokenizer.encode_batch(list(texts))]
    length = np.array([len(row) for row in ids], np.int32)
    order, found, run = np.argsort(length, kind="stable"), np.zeros((len(texts), outer[WORDS].shape[1]), np.float16), jax.jit(embed)
    pending: list[tuple[np.ndarray, jax.Array]] = []
    low = 0
    for longest in SHAPES:
        here = order[(length[order] > low) & (length[order] <= longest)]
        low = longest
        for start in range(0, len(here), batch):
            rows = here[start : start + batch]
            ids_BL, length_B = np.zeros((batch, longest), np.int32), np.zeros(batch, np.int32)
            for place, row in enumerate(rows):
                ids_BL[place, : length[row]] = ids[row]
            length_B[: len(rows)] = length[rows]
            pending.append((rows, run(outer, layers, ids_BL, length_B)))
    for rows, made in pending:
        found[rows] = np.asarray(made)[: len(rows)]
    return found


def packed(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What ``vectors_of`` needs for these texts, from the package: rounded weights, word pieces in use, the tokenizer's file."""
    from safetensors.numpy import load_file

    from benchmarks.nano.vectors import model_folder

    folder = model_folder()
    tokenizer_json = json.dumps(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    used = sorted({piece for found in tokenizer_of(tokenizer_json).encode_batch(list(texts)) for piece in found.ids})
    weights = rounded(load_file(folder / "model.safetensors"), np.array(used))
    return {"used_V": np.array(used, np.int32), "tokenizer": np.frombuffer(tokenizer_json.encode(), np.uint8), **weights}


def unpacked(arrays: dict[str, np.ndarray]) -> Callable[[Sequence[str]], np.ndarray]:
    """texts -> their vectors, from what ``packed`` gave."""
    weights = {name: array for name, array in arrays.items() if name not in ("used_V", "tokenizer")}
    tokenizer = tokenizer_of(arrays["tokenizer"].tobytes().decode())
    return lambda texts: vectors_of(texts, tokenizer, arrays["used_V"], weights)
