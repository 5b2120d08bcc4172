"""What requests may hold and what answers hold: the shapes of the HTTP interface, and of its OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SEEDS = 2**53 - 1  # the largest whole number that every JSON reader keeps
STOPS, STOP = 4, 256  # stop strings, and characters of one
SPEC = 400  # characters
STEPS = 10_000
MANY = 4_096  # prompts, or messages
NAME = 64  # characters of the name of a field that an error repeats
TOP = 20  # likeliest tokens told of a position

Word = Annotated[str, Field(min_length=1, max_length=STOP)]
Spec = Annotated[str, Field(min_length=1, max_length=SPEC)]
Tokens = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MANY, fail_fast=True)]
TokenLists = Annotated[list[Tokens], Field(min_length=1, max_length=MANY, fail_fast=True)]


class Unknown(ValueError):
    """A field that is not there."""

    def __init__(self, field: str, known: list[str]):
        super().__init__(field)
        self.field, self.known = field, known


class Strict(BaseModel):
    """Takes what its fields say and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def known(cls, given: Any) -> Any:
        """Name a field that is not there, and those that are."""
        names = [each.alias or name for name, each in cls.model_fields.items()]
        if isinstance(given, dict) and (unknown := next((name for name in given if name not in names), None)):
            raise Unknown(unknown[:NAME], names)
        return given


class StreamOptions(Strict):
    include_usage: bool | None = None


class Plain(Strict):
    type: Literal["text"]


class AnyObject(Strict):
    type: Literal["json_object"]


class Schema(Strict):
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] = Field(alias="schema", description="a JSON schema")


class JsonSchema(Strict):
    type: Literal["json_schema"]
    json_schema: Schema


Format = Annotated[Plain | AnyObject | JsonSchema, Field(discriminator="type")]


class Asked(Strict):
    """What completions and chats have in common. null is the same as nothing."""

    model: str | None = Field(None, description="the name that /v1/models tells; left out: that model")
    max_tokens: int | None = Field(None, ge=1, description="tokens to write; 64 if left out")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1, description="the share of probability that draws are made from")
    n: int | None = Field(None, ge=1, description="answers to each prompt")
    seed: int | None = Field(
        None, ge=0, le=SEEDS, description="keys every random choice; the choice of index i uses seed + i"
    )
    stop: Word | Annotated[list[Word], Field(max_length=STOPS)] | None = Field(
        None, description=f"a text, or up to {STOPS}, each of 1 to {STOP} characters; the answer ends before the first"
    )
    stream: bool | None = Field(None, description="answer with server-sent events")
    stream_options: StreamOptions | None = None
    stream_mode: Literal["text", "denoise"] | None = Field(
        None, description="what a stream tells: final text in order, or every step's writes"
    )
    response_format: Format | None = Field(
        None, description='{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {...}}'
    )
    decoder: Spec | None = Field(None, description="a spec such as threshold(tau=0.9)")
    cache: Spec | None = Field(None, description="a spec such as causal")
    guide: Spec | None = Field(None, description="a spec such as eos(policy='stop')")
    block: int | None = Field(None, ge=1, description="positions per block")
    steps: int | None = Field(None, ge=1, le=STEPS, description="predictions allowed per block")
    full: bool | None = Field(None, description="leader models: look both ways, as filling blanks needs")
    user: str | None = Field(None, description="ignored")
    presence_penalty: float | None = Field(None, ge=0, le=0, description="penalties are not supported: 0")
    frequency_penalty: float | None = Field(None, ge=0, le=0, description="penalties are not supported: 0")
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = Field(
        None, description="an empty object; biases are not supported"
    )


class Completion(Asked):
    prompt: str | Texts | Tokens | TokenLists = Field(
        description="a text, a list of texts, a list of token ids, or a list of such lists"
    )
    suffix: str | None = Field(None, description="what follows the text to be written")
    blanks: bool | None = Field(None, description="is the prompt a text with blanks, such as [[8]]?")
    logprobs: int | None = Field(None, ge=0, le=TOP, description="likeliest tokens to tell of each position")
    echo: bool | None = Field(None, description="repeat the prompt before each answer")
    best_of: int | None = Field(None, ge=1, le=1, description="not supported: 1, or leave it out")


class Part(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=MANY, fail_fast=True)] = Field(
        description='a text, or parts of type "text"'
    )
    name: str | None = None
    refusal: None = None


class Chat(Asked):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MANY, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1, description="the same as max_tokens")
    logprobs: bool | None = Field(None, description="tell the log-probability of each token")
    top_logprobs: int | None = Field(
        None, ge=0, le=TOP, description="likeliest tokens to tell of each position; needs logprobs"
    )


# Answers. Extra fields are not forbidden in the document: more may come.


class Reused(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    forwards: int
    tokens_per_forward: float
    prompt_tokens_details: Reused


class TokenScores(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    index: int
    text: str
    logprobs: TokenScores | None
    finish_reason: Literal["stop", "length"]
    seed: int
    blanks: list[str] | None = None


class CompletionAnswer(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Score(BaseModel):
    token: str
    logprob: float | None
    bytes: list[int] | None


class ScoreOf(Score):
    top_logprobs: list[Score]


class Scores(BaseModel):
    content: list[ScoreOf]


class Reply(BaseModel):
    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    index: int
    message: Reply
    logprobs: Scores | None
    finish_reason: Literal["stop", "length"]
    seed: int


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Option(BaseModel):
    name: str
    about: str
    options: dict[str, str]


class Defaults(BaseModel):
    decoder: str
    cache: str | None
    block: int | None
    steps: int | None


class Abilities(BaseModel):
    attention: str
    block: int | None
    context_length: int | None
    vocab: int
    parameters: int
    device: str
    dtype: str
    decoders: list[Option]
    caches: list[Option]
    guides: list[Option]
    defaults: Defaults
    chat: bool
    autoregressive: bool


class ModelEntry(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    unveil: Abilities


class Models(BaseModel):
    object: Literal["list"]
    data: list[ModelEntry]


class Health(BaseModel):
    status: Literal["ok", "starting", "draining", "down"]


class Trouble(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    error: Trouble
