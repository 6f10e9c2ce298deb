"""Chat templates: messages as a checkpoint's own template writes them, and their ids."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import resolve
from .errors import TokenizerError
from .files import read_json, read_text
from .tokenizer import Tokenizer


class Chat:
    """A checkpoint's chat template (tokenizer_config.json's "chat_template", or chat_template.jinja).

    Rendered in jinja2's sandbox with what transformers gives a template: messages, add_generation_prompt, the
    special tokens, `raise_exception`, `strftime_now`, and `tojson` that keeps Chinese characters.
    """

    def __init__(self, template: str, tokens: Mapping[str, str], tokenizer: Tokenizer, where: str = "template") -> None:
        try:
            import jinja2
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise TokenizerError("chat templates need jinja2; install it with: pip install 'numllm[chat]'") from error

        def fail(message: str) -> None:
            raise TokenizerError(f"{where}: the chat template refuses the messages: {message}")

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals |= {
            "raise_exception": fail, "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        }
        self._error: type[Exception] = jinja2.TemplateError
        self._where, self._tokens, self._tokenizer = where, dict(tokens), tokenizer
        try:
            self._template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise TokenizerError(f"{where}: the chat template is not valid: {error}") from error
        specials = tokenizer.special_ids()
        names = sorted(map(re.escape, specials), key=len, reverse=True)
        self._specials = specials
        self._split = re.compile(f"({'|'.join(names)})") if names else re.compile("(?!)")

    @classmethod
    def open(cls, name: str | Path, tokenizer: Tokenizer) -> Chat:
        """The template of a checkpoint. TokenizerError when it has none."""
        folder = resolve(name)
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.is_file() else {}
        template = settings.get("chat_template") if isinstance(settings, dict) else None
        if isinstance(template, list):  # several templates by name
            template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
        if (folder / "chat_template.jinja").is_file():
            template = read_text(folder / "chat_template.jinja")
        if not isinstance(template, str):
            raise TokenizerError(f"{folder}: has no chat template; it is no chat model, ask without --chat")
        tokens = {}
        for kind in ("bos_token", "eos_token", "pad_token", "unk_token"):
            token = settings.get(kind)
            tokens[kind] = token.get("content", "") if isinstance(token, dict) else token or ""
        return cls(template, tokens, tokenizer, str(folder))

    def render(self, messages: Sequence[Mapping[str, str]], **extra: Any) -> str:
        """The text of messages ({"role", "content"}) up to where the assistant begins to speak.

        extra: variables for the template; enable_thinking is False unless given. TokenizerError when a message
        holds one of the model's control tokens, or the template refuses.
        """
        for message in messages:
            found = self._split.search(message["content"])
            if found:
                raise TokenizerError(f"a message holds the control token {found[0]!r}; remove it from the text")
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True,
                **{"enable_thinking": False, **self._tokens, **extra},
            )
        except self._error as error:
            raise TokenizerError(f"{self._where}: the chat template cannot be filled: {error}") from error

    def split(self, text: str) -> tuple[list[int], str]:
        """(ids up to the last control token of a rendered text, the plain text after it)."""
        parts = self._split.split(text)
        ids: list[int] = []
        for part in parts[:-1]:
            ids += [self._specials[part]] if part in self._specials else self._tokenizer.encode(part)
        return ids, parts[-1]

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered text: control tokens as such, the rest as text; nothing is added around it."""
        ids, tail = self.split(text)
        return ids + self._tokenizer.encode(tail)
