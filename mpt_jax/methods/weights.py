"""Fine-tuning and pretraining: all weights of the backbone train, and the network stays as it is."""

from mpt_jax.methods.method import Method, Part

METHOD = Method(
    "weights", (Part("backbone/.*", None, "weights"), Part("head/.*", None, "weights")), lambda start: {}, None,
    learning_rate=3e-4,  # of fine-tuning [ATTEMPT]
)  # fmt: skip
