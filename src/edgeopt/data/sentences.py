"""Texts of our own: to compare text models on where the user has none, and to check tokenizers with."""

from __future__ import annotations

from pathlib import Path

from edgeopt.core.card import ModelCard
from edgeopt.core.model import TensorSpec
from edgeopt.data.source import Sample, digest, settings_digest

SENTENCES = (
    "The train to the coast leaves at seven.",
    "She repaired the old radio in a single afternoon.",
    "Nobody expected the bridge to be closed again.",
    "Our new phone lasts two days on one charge.",
    "I would not recommend this restaurant to anyone.",
    "A small dog barked at the passing bicycle.",
    "Rain is expected in the north later this week.",
    "The committee postponed its decision until March.",
    "What a wonderful concert that was!",
    "Please restart the device and try once more.",
    "Prices rose by 3.5 % compared with last year.",
    "He forgot his keys, so he waited outside.",
    "Two astronauts returned to Earth after half a year.",
    "The soup was cold and the waiter was rude.",
    "Can you translate this letter into Portuguese?",
    "They planted apple trees along the whole road.",
    "The museum shows photographs from the 1920s.",
    "Her explanation was short, clear and convincing.",
    "A storm damaged several roofs in the village.",
    "The software update fixes a crash at start-up.",
)
TOKENIZER_TEXTS = (
    *SENTENCES[:6],
    "",
    " ",
    "a",
    "UPPER and lower CaSe",
    "naïve café, Ångström, Dvořák, façade",
    "e\u0301 and \u00e9 look the same",
    "don't, can't, it's; rock'n'roll",
    "tabs\tand\nline breaks\r\nand   many   spaces",
    "1234567890 3.14159 1,000,000 -17 50%",
    "https://example.org/path?query=1&other=two#part",
    "someone@example.org #tag @name $5 €10",
    "“curly” ‘quotes’ — dashes – and … dots",
    "中文分词没有空格",
    "日本語のテキストです",
    "Привет, как дела?",
    "مرحبا بالعالم",
    "👍🏽 emoji 👩‍👩‍👧 joined 🇪🇺",
    "zero\u200bwidth and soft\u00adhyphen",
    "[CLS] special [SEP] words [PAD] <s> </s>",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "word " * 700,
)


class Sentences:
    """`sentences`: ordered pairs of different sentences, 380 texts without labels."""

    kind = "builtin"
    labels = None

    def __init__(self, card: ModelCard, inputs: tuple[TensorSpec, ...], base: Path) -> None:
        from edgeopt.data.text import TextEncoder  # needs a package that a reader of the texts alone does not

        self._encoder = TextEncoder(card.preprocess, inputs, base)
        self._settings = settings_digest(card, inputs, None)

    def __len__(self) -> int:
        return len(SENTENCES) * (len(SENTENCES) - 1)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, other = divmod(index, len(SENTENCES) - 1)
        text = SENTENCES[first]
        if index % 2:  # short and longer texts, so that masks differ
            text += " " + SENTENCES[other if other < first else other + 1]
        return Sample(self._encoder.text(text, f"sentence {index}"), None, f"sentence {index}")

    def fingerprint(self) -> str:
        """Return a sha256 over the texts and the tokenizer."""
        return digest(self._settings, self._encoder.identity, *SENTENCES)
