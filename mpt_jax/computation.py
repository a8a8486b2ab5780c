"""How a network is computed, whatever its shape."""

import dataclasses

from mpt_jax import checks

ATTENTIONS = ("auto", "einsum", "fused")  # model/attention.py


@dataclasses.dataclass(frozen=True)
class Computation:
    """How a network is computed, whatever its shape."""

    dtype: str = "float32"  # of activations and frozen weights: 'bfloat16' on TPU and GPU
    remat: str = "none"  # training: 'none' keeps all activations for the backward pass, 'layers' only those between layers
    attention: str = "auto"  # 'einsum' | 'fused': logits stay in the chip | 'auto': 'fused' where it fits on TPUs [ours]
    dropout_rate: float = 0.0  # PT-JAX trains prompts without dropout

    def __post_init__(self):
        checks.check_types(self)
        checks.check_choice("Computation.dtype (DTYPE)", self.dtype, ("float32", "bfloat16"))
        checks.check_choice("Computation.remat (REMAT)", self.remat, ("none", "layers"))
        checks.check_choice("Computation.attention (ATTENTION)", self.attention, ATTENTIONS)
        checks.check_range("Computation.dropout_rate (DROPOUT_RATE)", self.dropout_rate, 0.0, 0.99)
