"""What each API wants to be asked and how it answers: request bodies, allowed fields, token evidence, usage, errors.

A dialect is a value in the table `DIALECTS`. Facts: the servers' sources, and captured streams (tests/data/captures).
"""

from perfsuite.dialects.dialect import RESERVED_FIELDS, TERMINATOR, Ask, Dialect, Event, EventError
from perfsuite.dialects.openai import OPENAI
from perfsuite.dialects.sglang import SGLANG, SGLANG_GENERATE
from perfsuite.dialects.trtllm import TRTLLM
from perfsuite.dialects.vllm import VLLM

DIALECTS: dict[str, Dialect] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "sglang-generate": SGLANG_GENERATE,
    "trtllm": TRTLLM,
    "openai": OPENAI,
}

__all__ = ["DIALECTS", "RESERVED_FIELDS", "TERMINATOR", "Ask", "Dialect", "Event", "EventError"]
