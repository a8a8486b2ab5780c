"""Words of a text in any script, for scores that compare words: the same as the published rules make of English."""

import re
import unicodedata

# written without blanks between words: kana and Chinese characters; each counts as a word, as in sacrebleu's 'zh' and MLQA's F1
UNSPACED = re.compile(
    "([\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U000323af])"
)
WORD = ("L", "M", "N")  # Unicode categories of letters, marks (vowels of Hindi, accents) and digits
INVISIBLE = "Cf"  # joiners inside words of Persian and Hindi, soft hyphens


def spaced(text: str) -> str:
    """The text with a blank on both sides of each character that is a word by itself."""
    return UNSPACED.sub(r" \1 ", text).strip() if UNSPACED.search(text) else text


def plain_words(text: str) -> list[str]:
    """Lower-case words of letters, marks and digits; of ASCII text the tokens of rouge-score."""
    text = spaced(unicodedata.normalize("NFC", text.lower()))
    return "".join(map(_letter, text)).split()


def _letter(letter: str) -> str:
    category = unicodedata.category(letter)
    if category == INVISIBLE:
        return ""
    return letter if category[0] in WORD else " "
