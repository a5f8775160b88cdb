"""Language of a text, by py3langid: 139 languages, offline, and the same result for the same text (decision 061)."""

from functools import cache
from typing import Any

from lightning_conan.extras import require

LEAST_BYTES = 48
"""UTF-8 bytes below which a text is not judged: some eight English words, more than most names have."""


@cache
def read_detector() -> Any:
    """Loads the detector, once; its calls change nothing, so that threads may share it.

    Raises:
        ValueError: It is not installed.
    """
    require("py3langid", "Telling other languages from English (plan.rules.foreign below 1)")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def is_foreign(text: str, confidence: float) -> bool:
    """True if a text is in another language than English; false for a short one, such as a name.

    Args:
        text: The text.
        confidence: Probability that the other language must exceed, 0 to 1; 1 asks no detector.

    Raises:
        ValueError: The detector is asked and not installed.
    """
    if confidence >= 1:
        return False
    language, found = read_detector().classify(text)
    return len(text.encode(errors="replace")) >= LEAST_BYTES and language != "en" and found > confidence
