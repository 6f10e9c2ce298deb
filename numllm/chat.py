"""Chat templates: messages as a checkpoint's own template writes them, and their ids.

A template comes with the checkpoint, so it is anyone's: it runs in jinja2's sandbox, and whatever it does wrong
is one line.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import resolve
from .errors import TokenizerError, short
from .files import read_text
from .tokenizer import Tokenizer, read_settings


class Chat:
    """A checkpoint's chat template (tokenizer_config.json's "chat_template", or chat_template.jinja).

    Rendered with what transformers gives a template: messages, tools and documents (none), add_generation_prompt,
    the special tokens, `raise_exception`, `strftime_now`, `tojson` that keeps Chinese characters, and the blocks
    `break`, `continue` and `generation`.
    """

    def __init__(self, template: str, tokens: Mapping[str, str], tokenizer: Tokenizer, where: str = "template") -> None:
        environment = _environment(where)
        self._where, self._tokens, self._tokenizer = where, dict(tokens), tokenizer
        with _one_line(f"{where}: the chat template is not valid"):
            self._template = environment.from_string(template)

    @classmethod
    def open(cls, name: str | Path, tokenizer: Tokenizer) -> Chat:
        """The template of a checkpoint. TokenizerError when it has none."""
        folder = resolve(name)
        settings = read_settings(folder, tokenizer.file)
        template = settings.get("chat_template")
        if isinstance(template, list):  # several templates by name
            named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
            template = named[0].get("template") if named else None
        if (folder / "chat_template.jinja").is_file():
            template = read_text(folder / "chat_template.jinja")
        if not isinstance(template, str):
            raise TokenizerError(f"{folder}: has no chat template; it is no chat model, ask without --chat")
        tokens = {}
        for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
            token = settings.get(f"{kind}_token")
            text = token.get("content") if isinstance(token, dict) else token
            if text:
                tokens[f"{kind}_token"] = text
        return cls(template, tokens, tokenizer, str(folder))

    def render(self, messages: Sequence[Mapping[str, Any]], **extra: Any) -> str:
        """The text of messages ({"role", "content", …}) up to where the assistant begins to speak.

        extra: variables for the template; enable_thinking is False unless given. TokenizerError when a message
        holds the model's mark-up (see `Tokenizer.markup`), or the template refuses or goes wrong.
        """
        for message in messages:
            found = self._tokenizer.markup.search(str(message.get("content") or ""))
            if found:
                raise TokenizerError(f"a message holds the control token {found[0]!r}; remove it from the text")
        given = {
            "messages": list(messages), "tools": None, "documents": None, "add_generation_prompt": True,
            "enable_thinking": False, **self._tokens, **extra,
        }
        with _one_line(f"{self._where}: the chat template cannot be filled"):
            return self._template.render(given)

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered text: control tokens as such, the rest as text; nothing is added around it."""
        return self._tokenizer.encode(text, control=True)


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turns anything a template raises into a TokenizerError of one line."""
    try:
        yield
    except TokenizerError:
        raise
    except Exception as error:
        raise TokenizerError(f"{what}: {short(' '.join(str(error).split()) or type(error).__name__)[1:-1]}") from error


def _environment(where: str) -> Any:
    """The sandbox that templates run in."""
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
    except ImportError as error:
        raise TokenizerError("chat templates need jinja2; install it with: pip install 'numllm[chat]'") from error

    class Sandbox(ImmutableSandboxedEnvironment):
        """Refuses what jinja2's own would only write as nothing."""

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            """An attribute that leads to Python's internals."""
            raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    class Generation(Extension):
        """{% generation %}…{% endgeneration %}: marks what the assistant says, and writes it as it is."""

        tags = {"generation"}

        def parse(self, parser: jinja2.parser.Parser) -> Any:
            """The statements inside."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> None:
        raise TokenizerError(f"{where}: the chat template refuses the messages: {message}")

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {
        "raise_exception": fail, "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return environment
