"""From a batch to a saved prompt bank."""
