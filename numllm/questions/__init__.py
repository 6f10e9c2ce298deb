"""Choice questions: what one is, reading them from files, and turning them into prompts and scored token spans."""

from .formats import FORMATS, read_questions
from .prompts import (
    ANSWER,
    HEADER,
    HEADER_MULTIPLE,
    PROMPT_FORMS,
    Encoded,
    LetterPrompt,
    LetterTokens,
    encode_continuations,
    encode_letters,
    encode_options,
    extract_answer,
    fit_letters,
    header_of,
    letter_ids,
    letter_prompt,
    letter_tokens,
    likelihood_parts,
)
from .question import BLANK, LETTERS, NUMERIC_KINDS, Question, has_digit, is_numeric, numeric_kind, passages

__all__ = [
    "ANSWER", "BLANK", "FORMATS", "HEADER", "HEADER_MULTIPLE", "LETTERS", "NUMERIC_KINDS", "PROMPT_FORMS", "Encoded",
    "LetterPrompt", "LetterTokens", "Question", "encode_continuations", "encode_letters", "encode_options",
    "extract_answer", "fit_letters", "has_digit", "header_of", "is_numeric", "letter_ids", "letter_prompt",
    "letter_tokens", "likelihood_parts", "numeric_kind", "passages", "read_questions",
]
