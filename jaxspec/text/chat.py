"""Chat templates: a conversation as the text that a published model was trained on.

A checkpoint's template is a Jinja program, in `chat_template.jinja` or in
`tokenizer_config.json`, written by whoever published it. It runs in Jinja's sandbox, with
the settings and the functions that transformers gives it.
"""

import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError, ext, nodes, sandbox, utils

from jaxspec import files

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


class ChatTemplate(NamedTuple):
    """A template, and what it is told besides the conversation.

    Attributes:
        path: the file that it is from.
        source: the Jinja program.
        special_tokens: by the names that `tokenizer_config.json` has for them:
            `bos_token`, `eos_token` and others.
    """

    path: pathlib.Path
    source: str
    special_tokens: dict[str, str]


class _Generation(ext.Extension):
    """`{% generation %}` marks what an assistant said; here it is just its content."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        """Keeps the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(utils.Namespace):
    """Variables of a template, none of which looks like one of Python's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        """Sets one.

        Raises:
            SecurityError: if its name begins with an underscore.
        """
        if name.startswith("_"):
            raise sandbox.SecurityError(f"{name!r} begins with an underscore")
        super().__setitem__(name, value)


def load(folder: pathlib.Path) -> ChatTemplate:
    """Finds the template of a checkpoint; `chat_template.jinja` comes first.

    Raises:
        ValueError: if there is none, or its file is damaged.
    """
    path = folder / CONFIG
    config = files.read_json(path) if path.is_file() else {}
    tokens = {n: _content(v) for n, v in config.items() if n.endswith("_token")}
    tokens = {name: text for name, text in tokens.items() if isinstance(text, str)}
    if (own := folder / TEMPLATE).is_file():
        return ChatTemplate(own, files.read_text(own), tokens)
    source = config.get("chat_template")
    if source is None:
        raise ValueError(
            f"{folder} has no chat template; expected a {TEMPLATE}, or a chat_template in "
            f"{CONFIG}. Leave --chat out to continue the prompt as it is."
        )
    if isinstance(source, list):
        source = _default(path, source)
    if not isinstance(source, str):
        kind = type(source).__name__
        raise ValueError(f"{path}: expected chat_template as text, got {kind}.")
    return ChatTemplate(path, source, tokens)


def render(template: ChatTemplate, messages: Sequence[Mapping[str, str]]) -> str:
    """Writes a conversation as text, up to where the model's answer begins.

    Tokenize it with `add_special_tokens=False`: the template writes its own.

    Args:
        template: of the checkpoint.
        messages: each with a `role` (`system`, `user`, `assistant`) and its `content`.

    Raises:
        ValueError: in one line that names the file, on whatever goes wrong in it.
    """
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": _now,
        "namespace": _namespace,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),  # the type is not needed
    }
    try:
        return environment.from_string(template.source).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **template.special_tokens,
        )
    except Exception as error:  # the template is a program, and raises what it likes
        reason = files.one_line(error)
        raise ValueError(
            f"{template.path}: the chat template says: {reason}."
        ) from None


def _default(path: pathlib.Path, named: list[Any]) -> Any:
    """The default of several templates, each with a name."""
    try:
        templates = {entry["name"]: entry["template"] for entry in named}
    except (KeyError, TypeError):
        raise ValueError(
            f"{path}: expected templates with name and template."
        ) from None
    if "default" not in templates:
        names = ", ".join(map(str, templates)) or "none"
        raise ValueError(f"{path}: no chat template is called default, got {names}.")
    return templates["default"]


def _content(token: Any) -> Any:
    """The text of a token, which some files have as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    made = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
