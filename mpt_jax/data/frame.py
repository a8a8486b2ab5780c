"""What stands around an input and a target before they are tokens of a row.

T5 ends both with the end of sequence. A decoder-only model goes on writing: an input may begin with a token and ends with a cue
(``DataSettings.cue``), and a target follows after a space.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Frame:
    """Token ids before and after an input and a target, and what is put in front of a target's text.

    When a row is cut to its limit, what stands after its text stays.
    """

    input_start: tuple[int, ...] = ()
    input_end: tuple[int, ...] = ()
    target_space: str = ""
    target_end: tuple[int, ...] = ()
    target_start: tuple[int, ...] = ()
