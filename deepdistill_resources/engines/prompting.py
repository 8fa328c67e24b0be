"""Prompts in, think and answer out: the one place where queries are rendered and responses are split."""

import hashlib
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Example(BaseModel):
    """One worked example of a few-shot prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str
    response: str


class PromptStyle(BaseModel):
    """How a query becomes the text a model continues.

    `chat` uses the model's chat template; `few_shot` writes plain `Question:` / `Response:` pairs (for base models).
    `prefill` opens the response (for example `<think>`) and is part of the response text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["chat", "few_shot"] = "chat"
    system: str | None = None
    suffixes: dict[str, str] = {}  # category -> text after the last user message
    examples: dict[str, tuple[Example, ...]] = {}  # category -> worked examples ("default" for the others)
    prefill: str = ""

    def fingerprint(self) -> str:
        """Return a short hash of everything that changes the rendered prompt; part of a response's key."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def shared_prefix(self, category: str) -> str:
        """Return the text that all few-shot prompts of a category begin with (empty in chat mode)."""
        if self.mode == "chat":
            return ""
        examples = self.examples.get(category, self.examples.get("default", ()))
        shots = "".join(f"Question: {e.query}\nResponse: {e.response}\n\n" for e in examples)
        return f"{self.system}\n\n{shots}" if self.system else shots

    def chat_messages(self, messages: list[dict[str, str]], category: str) -> list[dict[str, str]]:
        """Return the query's messages with suffix, system prompt and worked examples, as a chat model sees them."""
        messages = [{"role": m["role"], "content": m["content"]} for m in messages]
        messages[-1]["content"] += self.suffixes.get(category, "")
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        at = 1 if messages[0]["role"] == "system" else 0
        for example in reversed(self.examples.get(category, self.examples.get("default", ()))):
            messages[at:at] = [
                {"role": "user", "content": example.query},
                {"role": "assistant", "content": example.response},
            ]
        return messages

    def render(self, messages: list[dict[str, str]], category: str, tokenizer: Any) -> str:
        """Return the prompt text for one query; `tokenizer` is a transformers tokenizer (used in chat mode)."""
        if self.mode == "few_shot":
            query = messages[-1]["content"] + self.suffixes.get(category, "")
            return f"{self.shared_prefix(category)}Question: {query}\nResponse: {self.prefill}"
        text = tokenizer.apply_chat_template(
            self.chat_messages(messages, category), tokenize=False, add_generation_prompt=True
        )
        return str(text) + self.prefill


THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


class ResponseParts(BaseModel):
    """A response split at its tags; `think` and `answer` are None where the part is missing."""

    think: str | None
    answer: str | None


def never_ends(text: str) -> bool:
    """Whether a think part begins and is not closed: the text is cut, however its engine says that it ended."""
    return THINK_OPEN in text and THINK_CLOSE not in text


_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)


def split_response(text: str) -> ResponseParts:
    """Split a response into its think and answer parts.

    Handles the papers' `<think>..</think><answer>..</answer>`, R1 style output that starts inside the think part
    (only `</think>` is there) and truncated output (an unclosed `<think>` has no answer).

    >>> split_response("<think>2+2=4</think><answer>4</answer>").answer
    '4'
    >>> split_response("so it is 4</think>The answer is 4.").think
    'so it is 4'
    """
    match = _THINK.search(text)
    if match:
        think, rest = match.group(1), text[match.end() :]
    elif "</think>" in text:
        think, _, rest = text.partition("</think>")
    elif "<think>" in text:
        return ResponseParts(think=text.partition("<think>")[2].strip() or None, answer=None)
    else:
        think, rest = "", text
    tagged = _ANSWER.search(rest)
    # What follows the think part is the answer, also where that part is empty.
    answer = tagged.group(1) if tagged else (rest if len(rest) < len(text) else None)
    return ResponseParts(think=think.strip() or None, answer=(answer or "").strip() or None)


def join_response(think: str | None, answer: str | None) -> str:
    """Return the canonical text of a response, as students are trained on it; the inverse of `split_response`.

    A missing part is left out with its tags.

    >>> join_response("2+2=4", "4")
    '<think>2+2=4</think><answer>4</answer>'
    """
    thought = f"{THINK_OPEN}{think}{THINK_CLOSE}" if think else ""
    return thought + (f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}" if answer else "")
