"""The words that models are asked with: text files under ``data/prompts``, filled by Jinja, hashed for the manifest.

What is put into a template is data. It is never expanded again, it cannot end the fence that it stands in, and it
cannot play a turn of the conversation.
"""

import hashlib
import itertools
import re
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from evorefuse.records import derive

FOLDER = Path(__file__).parent / "data" / "prompts"
_ENVIRONMENT = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
# What chat templates set between turns: a local model's tokenizer reads it as such wherever it stands.
_TURN_MARKS = re.compile(
    r"<(?=[|｜])|[|｜](?=>)|<(?=/?s>)|<(?=(?:start|end)_of_turn>)|<(?=(?:bos|eos|pad|unk)>)|\[(?=/?INST\])|<(?=</?SYS>>)",
    re.IGNORECASE,
)


class Template:
    """A text with slots ``{{ name }}``."""

    def __init__(self, *, name: str, text: str) -> None:
        """Compile the template.

        Raises:
            jinja2.TemplateSyntaxError: where it is none.
        """
        self.name = name
        self.sha256 = hashlib.sha256(text.encode("utf-8")).hexdigest()
        self._compiled = _ENVIRONMENT.from_string(text)

    def fill(self, **slots: object) -> str:
        """The text with its slots filled, as they are: nothing in a slot's text is expanded.

        Raises:
            jinja2.UndefinedError: where a slot is left empty.
        """
        return self._compiled.render(slots).strip()


def read(name: str) -> Template:
    """The shipped template ``name``, such as ``mutate/anger``.

    Raises:
        FileNotFoundError: where there is none, naming those beside it.
    """
    path = FOLDER / f"{name}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"no prompt {name!r}; expected one of: {', '.join(shipped(Path(name).parent.name))}")
    return Template(name=name, text=path.read_text(encoding="utf-8"))


def shipped(folder: str) -> list[str]:
    """The names of the templates in a folder of ``data/prompts``, sorted."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in (FOLDER / folder).glob("*.txt"))


def mark_for(*texts: str) -> str:
    """A mark of 16 hexadecimal digits for the fence around ``texts``: it hangs on them alone and is in none of them."""
    marks = (f"{derive('mark', salt, *texts):016x}" for salt in itertools.count())
    return next(mark for mark in marks if not any(mark in text.lower() for text in texts))


def inert(text: str) -> str:
    """``text`` with a space in what a chat template sets between turns (``<|im_end|>`` → ``< |im_end| >``)."""
    return _TURN_MARKS.sub(lambda found: f"{found[0]} ", text.encode("utf-8", "replace").decode("utf-8"))
