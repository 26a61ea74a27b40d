"""The API's objects: what a request may hold, what a reply holds.

Fields that Ponder does not know are ignored, as other servers do; what it knows but cannot do is refused by
`refusals`, never silently dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _encodable(text: str) -> str:
    """JSON can spell halves of characters, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be text that UTF-8 can encode") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Some = Field(min_length=1, max_length=128)
Stop = Annotated[Text, Field(min_length=1)]


class _Request(BaseModel):
    # a number where a text belongs is a client's mistake, not something to guess about
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class TextPart(_Request):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(_Request):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None
    reasoning_content: str | None = Field(default=None, description="Must not be sent back: such a request gets 400.")
    reasoning: str | None = Field(default=None, description="Ignored: earlier thinking is not shown to the model.")
    tool_calls: list[Any] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(_Request):
    """What a stream holds besides text."""

    include_usage: bool = False


class Thinking(_Request):
    """DeepSeek's switch for thinking."""

    type: Literal["enabled", "disabled"] = "enabled"
    budget_tokens: int | None = Field(
        default=None, ge=0, description="After so many tokens of thinking the block is closed and the answer begins."
    )


class TemplateArguments(_Request):
    """vLLM's way to reach a chat template; other names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    thinking: bool | None = None
    enable_thinking: bool | None = None


class Sampled(_Request):
    """What chat and completion requests share."""

    model: Text
    n: int = Field(default=1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def refusals(self) -> dict[str, str]:
        """What cannot be done, by field: refused rather than ignored."""
        refused = {}
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name):
                refused[name] = "penalties are not supported: leave it out or set 0"
        if self.logit_bias:
            refused["logit_bias"] = "biases are not supported: leave it out"
        if self.stream_options is not None and not self.stream:
            refused["stream_options"] = "only a stream has stream_options: set stream"
        return refused


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateArguments | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def wants_thinking(self) -> bool:
        """Thinking is on unless switched off in one of the ways that clients know."""
        named = self.chat_template_kwargs or TemplateArguments()
        off = False in (named.thinking, named.enable_thinking)
        budget = None if self.thinking is None else self.thinking.budget_tokens
        return not (off or budget == 0 or (self.thinking is not None and self.thinking.type == "disabled"))

    def refusals(self) -> dict[str, str]:
        refused = super().refusals()
        if self.tools or self.functions or any(m.tool_calls for m in self.messages):
            refused["tools"] = "tools are not supported: leave them out"
        if self.response_format and self.response_format.get("type") != "text":
            refused["response_format"] = "only the format text is supported"
        if self.top_logprobs is not None and not self.logprobs:
            refused["top_logprobs"] = "needs logprobs: true"
        if any(message.reasoning_content for message in self.messages):
            refused["messages"] = "reasoning_content must not be sent back: remove it from the messages"
        if self.messages[-1].role == "assistant":
            refused["messages"] = "the last message must not be the assistant's: a reply begins anew"
        return refused


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: (
        Text | Annotated[list[Text], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    )
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        given: list[Any] = list(self.prompt)
        return [given] if isinstance(given[0], int) else given

    def refusals(self) -> dict[str, str]:
        refused = super().refusals()
        if self.echo:
            refused["echo"] = "the prompt is not repeated: leave it out"
        if self.suffix:
            refused["suffix"] = "text can only be continued: leave it out"
        if self.best_of is not None and self.best_of != self.n:
            refused["best_of"] = "must equal n: replies are not ranked"
        return refused


class _Reply(BaseModel):
    """Written with the fields that were set: a stream's pieces hold no more than what is new."""


class TopLogprob(_Reply):
    """One candidate token."""

    token: str
    logprob: float
    bytes: list[int] | None
    """None where the token is no whole character."""


class TokenLogprob(TopLogprob):
    """A token of the reply with the most probable candidates in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Reply):
    """Log-probabilities of a reply's tokens, thinking apart as DeepSeek does."""

    content: list[TokenLogprob] | None
    reasoning_content: list[TokenLogprob] | None
    refusal: None = None


class AssistantMessage(_Reply):
    """A reply. Thinking comes under DeepSeek's name and, with the same text, under vLLM's newer one."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None
    reasoning: str | None


class AssistantDelta(_Reply):
    """What is new of a reply."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    restart: bool | None = None
    """True: what came as content so far stood outside the answer's tags; the answer begins anew."""


class ChatChoice(_Reply):
    """One of `n` replies."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatChunkChoice(_Reply):
    """What is new of one of `n` replies."""

    index: int
    delta: AssistantDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class CompletionTokensDetails(_Reply):
    """Of the tokens sampled."""

    reasoning_tokens: int


class Usage(_Reply):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails


class ChatCompletion(_Reply):
    """The reply to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(_Reply):
    """One event of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(_Reply):
    """Log-probabilities in the older form: lists that run in step."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(_Reply):
    """One continuation, or what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(_Reply):
    """The reply to a completion request, or one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelCard(_Reply):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ponder"


class ModelList(_Reply):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(_Reply):
    """GET /health."""

    status: Literal["ok", "stopping", "failed"]


class ErrorDetail(_Reply):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Reply):
    """Every error of the API."""

    error: ErrorDetail
