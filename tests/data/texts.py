"""Texts for hypothesis with every kind of character that GPT-2's regular expression distinguishes."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Letters, digits, signs and whitespace, in ASCII and beyond, and Unicode characters that look like one of them.
SIGNS = "aZ7 '\n\t.!-sldtmrev\r\x0b\x1c\x85\xa0éñßЖ漢字ァ。、，！？٣²½Ⅷ\u2003\u2028\u200b\u0301🙂<|>"  # noqa: RUF001
WORDS = ["'s", "'ll", "'re", "don't", "<|endoftext|>", "\r\n", "  ", "\n\n", "12ab", "漢字。漢", "x" * 9, " " * 9]
LETTERS = st.one_of(st.sampled_from(SIGNS), st.characters(exclude_categories=["Cs"]), st.sampled_from(WORDS))
TEXTS = st.lists(LETTERS, max_size=60).map("".join)
QUICK = settings(deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
