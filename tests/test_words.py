"""Words of texts in any script."""

import pytest
from mpt_jax.tasks.words import plain_words, spaced


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's-3 a_b, U.S.", ["the", "cat", "s", "3", "a", "b", "u", "s"]),
        ("café ÉTÉ nai\u0308ve", ["café", "été", "naïve"]),
        ("हिन्दी में लिखा।", ["हिन्दी", "में", "लिखा"]),
        ("مرحبا، بالعالم؟", ["مرحبا", "بالعالم"]),
        ("می\u200cخواهم", ["میخواهم"]),  # the joiner that Persian writes inside a word
        ("东京2024年，好。", ["东", "京", "2024", "年", "好"]),
        ("東京タワーis", ["東", "京", "タ", "ワ", "ー", "is"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("", []),
    ],
)
def test_plain_words(text, words):
    assert plain_words(text) == words


def test_only_characters_that_are_words_get_blanks():
    assert spaced("a  b\tc é") == "a  b\tc é"
    assert spaced("我爱NY。").split() == ["我", "爱", "NY。"]
