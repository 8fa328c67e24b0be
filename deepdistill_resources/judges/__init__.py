"""Language models that judge: a prompt in a file, fenced and cleaned fields, one JSON object back, never a guess."""

from deepdistill_resources.judges.judge import JUDGE_SAMPLING, Judge, JudgeFacts, Opinion
from deepdistill_resources.judges.prompt import Prompt, PromptError
from deepdistill_resources.judges.questions import QUALITY, SAME_ANSWER, SIMILARITY, Question, prompt_hashes
from deepdistill_resources.judges.reply import MalformedReply, parse_reply

__all__ = [
    "JUDGE_SAMPLING",
    "QUALITY",
    "SAME_ANSWER",
    "SIMILARITY",
    "Judge",
    "JudgeFacts",
    "MalformedReply",
    "Opinion",
    "Prompt",
    "PromptError",
    "Question",
    "parse_reply",
    "prompt_hashes",
]
