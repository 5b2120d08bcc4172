"""Text to tokens and back: a tokenizer, its special tokens and its chat template."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, SupportsInt

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ..whole import put
from .template import render

ROLES = ("bos", "eos", "pad", "unk", "mask")
END = "<|endoftext|>"
MASK = "<|mask|>"
MASKS = (MASK, "<|MASK|>", "<|mdm_mask|>", "[MASK]")  # ours and Dream's, SDAR's, LLaDA's, BERT's
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast")
QWEN = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "DreamTokenizer")


def inner(tokenizer: Tokenizer) -> Tokenizer:
    """The same, but without a space put before a text; special tokens are plain text to it."""
    found = json.loads(tokenizer.to_str())
    for step, parts in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        found[step] = without_space(found[step], parts)
    made = Tokenizer.from_str(json.dumps(found))
    made.encode_special_tokens = True
    return made


def without_space(part: dict[str, Any] | None, parts: str) -> dict[str, Any] | None:
    """One step of a tokenizer without what puts a space before a text; `parts` names the steps of a sequence."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        steps = [without_space(each, parts) for each in part[parts]]
        return {**part, parts: [each for each in steps if each is not None]}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    return {**part, "add_prefix_space": False} if part["type"] == "ByteLevel" else part


class Text:
    """A tokenizer with the roles of its special tokens and, if it has one, its chat template.

    Nothing is added to what is encoded: documents are framed by `start_id` and `eos_id` by whoever builds them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special: Mapping[str, str | None] | None = None,
        template: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        """`special` gives token strings by role: bos, eos, pad, unk, mask. `config` is kept for `save`."""
        given = dict(special or {})
        if unknown := sorted(set(given) - set(ROLES)):
            raise ValueError(f"unknown special token role {unknown[0]!r}: the roles are {', '.join(ROLES)}")
        self.template = template
        self.config = dict(config or {})
        self._set(tokenizer)
        self.special: dict[str, str] = {}
        for role, token in given.items():
            if token is not None:
                self._add(token)
                self.special[role] = token

    def _set(self, tokenizer: Tokenizer) -> None:
        """Several, because whether special tokens are read, and how a text begins, are properties of a tokenizer."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        self.tokenizer = tokenizer  # reads special tokens where they are spelled
        self.plain = Tokenizer.from_str(tokenizer.to_str())  # takes their spelling for text
        self.plain.encode_special_tokens = True
        self.inner: Tokenizer | None = None  # does so in the middle of a text; made when it is needed

    def _add(self, token: str) -> None:
        """Make it a special token unless it is one; a token of the vocabulary keeps its id."""
        known = self.tokenizer.get_added_tokens_decoder().values()
        if not any(added.content == token and added.special for added in known):
            for tokenizer in (self.tokenizer, self.plain):
                tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
            self.inner = None

    # Special tokens

    def _id(self, role: str) -> int | None:
        return self.tokenizer.token_to_id(self.special[role]) if role in self.special else None

    @property
    def bos_id(self) -> int | None:
        return self._id("bos")

    @property
    def eos_id(self) -> int | None:
        return self._id("eos")

    @property
    def mask_id(self) -> int | None:
        return self._id("mask")

    @property
    def pad_id(self) -> int | None:
        return self._id("pad")

    @property
    def start_id(self) -> int | None:
        """What a document begins with: the beginning-of-text token, else the end-of-text token, else nothing."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @property
    def vocab(self) -> int:
        """One more than the largest id, added tokens included: the least number of rows of an embedding."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def add_mask(self, token: str = MASK) -> int:
        """Give the tokenizer a mask token unless it has one already; its id either way."""
        if "mask" not in self.special:
            self._add(token)
            self.special["mask"] = token
        return self.tokenizer.token_to_id(self.special["mask"])

    @property
    def fingerprint(self) -> str:
        """A hash of what decides `encode` and the framing of documents; adding a mask token leaves it as it is."""
        state = json.loads(self.tokenizer.to_str())
        state["added_tokens"] = [added for added in state["added_tokens"] if not added["special"]]
        kept = {key: value for key, value in state.items() if key not in ("post_processor", "truncation", "padding")}
        order = json.dumps([kept, self.bos_id, self.eos_id], sort_keys=True)
        return blake2b(order.encode(), digest_size=16).hexdigest()

    # Text to tokens and back

    def encode(self, text: str, special: bool = False, *, begins: bool = True) -> list[int]:
        """Tokens of a text. Special tokens spelled in it count only when `special`; otherwise they are plain text.

        Text that does not begin one but stands behind other text or a blank (`begins=False`) is always plain, and has
        no space before it but its own, where SentencePiece would put one.
        """
        if begins:
            tokenizer = self.tokenizer if special else self.plain
        else:
            tokenizer = self.inner = self.inner or inner(self.plain)
        return tokenizer.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of many texts, as `encode` gives them, on all cores."""
        return [found.ids for found in self.plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[SupportsInt], keep_special: bool = False) -> str:
        """The text of tokens, a list or a 1-D tensor; special tokens are left out unless they are to be kept."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=not keep_special)

    def pieces(self, ids: Iterable[SupportsInt], keep_special: bool = False) -> list[str]:
        """The text that each token adds; joined, they are `decode`.

        A character spelled by several tokens belongs to the last of them, the others add "".
        """
        ids = [int(i) for i in ids]
        found, since, read = [], 0, 0  # since: where the text that gives the context begins; read: what is spelled out
        for end in range(1, len(ids) + 1):
            before = self.decode(ids[since:read], keep_special)
            now = self.decode(ids[since:end], keep_special)
            if now.endswith("\ufffd") and end < len(ids) and end - read < 4:  # in the middle of a character
                found.append("")
                continue
            found.append(now[len(before) :])
            since, read = read if found[-1] else since, end
        return found

    def chat_text(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """A conversation as the checkpoint was trained to read it. ValueError without a chat template."""
        if self.template is None:
            raise ValueError("this tokenizer has no chat template: give prompts as plain text instead of messages")
        names = {f"{role}_token": token for role, token in self.special.items()}
        return render(self.template, messages, {**names, "add_generation_prompt": add_generation_prompt})

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """Tokens of a conversation: [{"role": "user", "content": "..."}, ...]. ValueError without a chat template.

        The template's special tokens are special; those that a message spells are plain text, so that no message
        can open a turn or hold a mask.
        """
        added = [t.content for t in self.tokenizer.get_added_tokens_decoder().values() if t.special]
        spelled = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)")
        quoted: list[str] = []

        def quote(match: re.Match[str]) -> str:
            quoted.append(match[0])
            return f"\ue000{len(quoted) - 1}\ue001"

        # A user's own private-use characters would read as quotations, so they are quoted as well.
        either = re.compile(f"[\ue000\ue001]|{spelled.pattern}")
        safe = [
            {**turn, "content": either.sub(quote, turn["content"])} if isinstance(turn.get("content"), str) else turn
            for turn in messages
        ]
        text = self.chat_text(safe, add_generation_prompt=add_generation_prompt)
        if not quoted:
            return self.encode(text, special=True)
        ids: list[int] = []
        for i, part in enumerate(re.split("\ue000(\\d+)\ue001", text)):
            ids += self.encode(quoted[int(part)]) if i % 2 else self.encode(part, special=True)
        return ids

    # Files

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Text:
        """Read tokenizer.json, or vocab.json with merges.txt, and the files beside it. Runs no code of the checkpoint.

        ValueError when there is no tokenizer or it cannot be read.
        """
        folder = Path(folder)
        config = _read_object(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").is_file():
            if "model" not in _read_object(folder / "tokenizer.json"):
                raise ValueError(f"{folder / 'tokenizer.json'} is not a tokenizer: it has no model")
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            tokenizer = _byte_level(folder, config.get("tokenizer_class"))
        else:
            others = " (tokenizer.model alone is not read: convert it to tokenizer.json with transformers)"
            hint = others if (folder / "tokenizer.model").is_file() else ""
            raise ValueError(
                f"{folder}: tokenizer missing, expected tokenizer.json or vocab.json with merges.txt{hint}"
            )
        listed = sorted((int(i), token) for i, token in config.get("added_tokens_decoder", {}).items())
        for i, token in listed:
            if tokenizer.token_to_id(token["content"]) is None:
                flags = {k: v for k, v in token.items() if k not in ("content", "__type")}
                tokenizer.add_tokens([AddedToken(token["content"], **flags)])
            if (found := tokenizer.token_to_id(token["content"])) != i:
                name = token["content"]
                raise ValueError(f"{folder}: tokenizer_config.json gives {name!r} the id {i}, the tokenizer {found}")
        special = _special(config, _read_object(folder / "special_tokens_map.json"), tokenizer)
        return cls(tokenizer, special=special, template=_template(folder, config), config=config)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json, as `load` and transformers' AutoTokenizer read them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        custom = "auto_map" in self.config  # its class is code of the checkpoint, which nobody should have to run
        config = {key: value for key, value in self.config.items() if key != "auto_map"}
        config["tokenizer_class"] = (
            "PreTrainedTokenizerFast" if custom else config.get("tokenizer_class", "PreTrainedTokenizerFast")
        )
        config.setdefault("clean_up_tokenization_spaces", False)
        config.update({f"{role}_token": token for role, token in self.special.items()})
        config["added_tokens_decoder"] = {
            str(i): {
                name: getattr(token, name)
                for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            }
            for i, token in sorted(self.tokenizer.get_added_tokens_decoder().items())
        }
        if self.template is not None:
            config["chat_template"] = self.template
        put(folder / "tokenizer.json", self.tokenizer.to_str(pretty=True))
        put(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold one JSON object, not a {type(found).__name__}")
    return found


def _byte_level(folder: Path, kind: str | None) -> Tokenizer:
    """The tokenizers whose vocab.json and merges.txt say too little: how the text is split depends on the class."""
    if kind is not None and kind not in GPT2 + QWEN:
        known = ", ".join(GPT2 + QWEN)
        raise ValueError(f"{folder}: vocab.json and merges.txt of a {kind} need a tokenizer.json (known: {known})")
    tokenizer = Tokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    if kind in QWEN:
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
        unsplit = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, unsplit])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id(END) is not None:
        tokenizer.add_special_tokens([END])
    return tokenizer


def _special(config: Mapping[str, Any], listed: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """Token strings by role, as the files give them; else the usual ones, for bos and eos together and for the mask."""
    found = {}
    for role in ROLES:
        token = config.get(f"{role}_token", listed.get(f"{role}_token"))
        token = token["content"] if isinstance(token, dict) else token
        if token is not None:
            found[role] = token
    if "bos" not in found and "eos" not in found:
        usual = {"bos": (END, "<s>"), "eos": (END, "</s>")}
        for role, names in usual.items():
            for name in names:
                if role not in found and tokenizer.token_to_id(name) is not None:
                    found[role] = name
    if "mask" not in found:
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        for name in MASKS:
            if name in added:
                found["mask"] = name
    return found


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found
