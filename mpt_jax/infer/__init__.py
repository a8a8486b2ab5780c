"""From a saved prompt bank to predictions, scores, files and pictures."""
