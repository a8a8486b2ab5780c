"""The key of dimension letters; array names end in their letters (``inputs_BL``).

======  =====================================================================
letter  meaning
======  =====================================================================
B       examples of a batch
L       input tokens
P       prompt positions
S       encoder positions, S = P + L
T       target tokens
D       model width (``d_model``)
H       attention heads
K       width of one head
F       width of the feed-forward layer
V       vocabulary
R       rank of the task factors
N       tasks (runs) in the prompt bank
G       groups of tasks that share one prompt ``P*``
E       width of a sentence vector (teaching an encoder in pretraining)
C       labels of a task, or other candidates that are compared
M       steps of a chunk that the sampler draws at once
X       width of all heads together, X = H * K
U       different tasks (runs) among the examples of a micro-batch
Q       queries of heads that share keys: their heads times query positions
A       log-probabilities kept of a teacher's distribution over the vocabulary
======  =====================================================================
"""

LETTERS = "BLPSTDHKFVRNGECMXUQA"
