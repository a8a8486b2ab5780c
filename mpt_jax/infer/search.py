"""How an answer is found: greedily, by beam search or by sampling, as the settings say."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp

from mpt_jax.config import EvalSettings
from mpt_jax.infer.beam import beam_decode
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.infer.sample import sample_decode


@dataclasses.dataclass(frozen=True)
class Search:
    """How texts are found; the fields are those of EvalSettings.

    beams: hypotheses of beam search, 1 is greedy. length_penalty: as in transformers, above 0 favours longer answers. temperature: above 0
    each token is drawn, from the most likely ones of probability ``top_p`` together. The same ``sample_seed`` draws the same answers.

    >>> run.predict(["definition: full of joy"], search=mpt_jax.Search(beams=2))
    ['...']
    >>> mpt_jax.Search(temperature=0.7, top_p=0.9).describe()
    {'temperature': 0.7, 'top_p': 0.9}
    """

    beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_p: float = 1.0
    sample_seed: int = 0

    def program(self, row_B) -> Callable:
        """The decoder: (network, backbone, own, rows, max_length, ends, limit_B=, pad=) -> tokens. row_B: see sample_decode."""
        if self.beams > 1:
            return functools.partial(beam_decode, beams=self.beams, length_penalty=jnp.float32(self.length_penalty))
        if self.temperature:
            draw = jnp.float32(self.temperature), jnp.float32(self.top_p), jnp.uint32(self.sample_seed)
            return functools.partial(sample_decode, draw=draw, row_B=row_B, cut=self.top_p < 1)
        return greedy_decode

    def describe(self) -> dict:
        """What differs from greedy decoding, as plain JSON values; {} for greedy decoding."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != getattr(GREEDY, name)}


GREEDY = Search()


def search_of(settings: EvalSettings) -> Search:
    """The search that the settings ask for."""
    return Search(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Search)})
