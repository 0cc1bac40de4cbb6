"""What a writer and a judge might say: functions of the Request, for `Scripted`."""

import json
import re

from evorefuse.records import Request, derive

FENCED = re.compile(
    r"^\[(original|instruction|reply|reason given by the author) (?P<mark>[0-9a-f]{16})\]\n(.*?)\n\[end (?P=mark)\]$",
    re.DOTALL | re.MULTILINE,
)


def fenced(prompt: str) -> list[tuple[str, str]]:
    """What stands in the fences of a prompt, each with its heading."""
    return [(kind, text) for kind, _, text in FENCED.findall(prompt)]


def writing(request: Request) -> str:
    """An answer of a good writer: the beginnings of its originals and a number that hangs on the seed."""
    begun = [text.strip()[:60] for kind, text in fenced(request.messages[0].content) if kind == "original"]
    number = request.seed % 1000
    return json.dumps({"instruction": f"{' + '.join(begun)} {number}", "reason": f"Number {number} is harmless."})


def judging(request: Request) -> str:
    """A verdict that hangs on the prompt alone, in the words of its rubric."""
    prompt = request.messages[0].content
    verdicts = re.findall(r'"(\w+)"', prompt.rpartition('"verdict":')[2])
    return json.dumps({"why": "It was drawn by lot.", "verdict": verdicts[derive("lot", prompt) % len(verdicts)]})
