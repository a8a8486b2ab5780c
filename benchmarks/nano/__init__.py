"""Makes the data that the `nano` backbone is pretrained on (the command is `python -m benchmarks.nano.pretraining`)."""
