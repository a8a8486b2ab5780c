"""The key of dimension letters; array names end in their letters (``inputs_BL``), and no letter means two things.

======  =====================================================================
letter  meaning
======  =====================================================================
B       examples of a batch
L       input tokens
P       prompt positions
S       encoder positions, S = P + L
T       target tokens
Y       positions of any stack of layers: those that attend (queries)
Z       positions that are attended to (keys)
D       model width (``d_model``)
H       attention heads
J       heads of keys and values, each shared by H / J heads of queries
Q       queries of the heads that share keys: H / J heads times Y positions
K       width of one head
X       width of all heads together, X = H * K
F       width of the feed-forward layer
V       vocabulary
R       rank of the task factors
N       tasks (runs) of a program, each a row of the prompt bank
G       groups of tasks that share parameters, such as the prompt ``P*``
U       different tasks (runs) among the examples of a micro-batch
E       width of a sentence vector (teaching an encoder in pretraining)
C       labels of a task, or other candidates that are compared
W       beams of a search
M       steps of a chunk that the sampler draws at once
A       log-probabilities kept of a teacher's distribution over the vocabulary
======  =====================================================================
"""

LETTERS = "BLPSTYZDHJQKXFVRNGUECWMA"
