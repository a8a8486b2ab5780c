"""Training steps and decoding on one GPU or TPU, beside Hugging Face PEFT on the same card: ``python -m benchmarks.accelerator``."""
