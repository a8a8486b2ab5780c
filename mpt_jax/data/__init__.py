"""From a SeqIO task to batches: vocabulary, token cache, sampler, batches. Reading needs no TensorFlow."""
