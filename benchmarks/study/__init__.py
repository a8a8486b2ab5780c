"""Does the method pay on a real pretrained model: sources, targets, methods, draws and seeds (python -m benchmarks.study)."""
