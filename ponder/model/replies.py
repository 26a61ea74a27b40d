"""How a reply is written down to train on: thinking, then what the user reads.

The form is R1's [R1 2.3.1, chat template]: a block of thinking, an empty line, a free answer. A reply that needs no
thinking has an empty block, so that one form serves all. `split_thinking` reads back what `reply_text` writes.
"""

from __future__ import annotations

from ponder.model.parser import END_THINK, THINK, prompt_tail


def reply_text(thinking: str, answer: str, prompt: str = "") -> str:
    """The completion that follows `prompt` (the whole rendered text, whose end may have opened the block already).

    Without the end token, which is the tokenizer's. Where the prompt ends with an empty block, the answer alone.
    """
    tail = prompt_tail(prompt)
    if END_THINK in tail:
        return answer
    block = f"{thinking}\n{END_THINK}\n\n{answer}"
    if not tail:
        return f"{THINK}\n{block}"
    return block if tail.endswith("\n") else f"\n{block}"
