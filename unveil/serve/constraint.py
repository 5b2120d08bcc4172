"""JSON that follows a schema: of a decoder's tokens, those are committed that keep a valid document possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import spec
from ..canvas import Canvas
from ..codecs.text import Text
from ..decoders import Decoder
from ..denoiser import Denoiser
from ..prediction import Prediction
from .grammar import Document, check, compiled, vocabulary


@dataclass
class Constrained(Decoder):
    """Writes into the one blank of each row what `inner` would, as far as it begins a document of the schema.

    What stands from a row's first blank on is a prefix of a valid document at every step. In a pass, the leftmost open
    position gets a token out of those that may come next, by `inner`'s own choice from the logits of these alone. The
    run goes on to the right while `inner` commits in the same pass and the token may come next. It ends early where the
    likeliest token was not allowed: what was said of later positions was said of another text. In a block's last
    allowed step it goes on to the end of the block, each token the choice among those that may come next.

    Characters without an alternative are written without a pass, spelled as the tokenizer spells them. As soon as a
    document can only end, the rest of the row's blanks become the end of the text. A document that needs more room than
    the blanks give is cut: a prefix of a valid one.
    """

    asides = 4

    inner: Decoder
    text: Text = field(repr=False)
    schema: Mapping[str, Any]
    documents: list[Document] = field(init=False, repr=False)  # one a row

    def __post_init__(self):
        if not fits(self.inner):
            known = (name for name in spec.names("decoders") if fits(spec.build("decoders", name)))
            raise ValueError(
                f"the {type(self.inner).__name__.lower()} decoder revises, looks beyond the block or makes passes of "
                f"its own, which text that grows from left to right has no use for; a JSON schema works with: "
                f"{', '.join(known)}"
            )
        check(self.schema, self.text)
        self.temperature, self.top_p = self.inner.temperature, self.inner.top_p
        super().__post_init__()

    @property
    def vectors(self) -> int:
        return self.inner.vectors

    @property
    def copies(self) -> int:
        return self.inner.copies

    def meet(self, model: Denoiser) -> None:
        self.inner.meet(model)

    def begin(self, canvas: Canvas) -> None:
        """ValueError when a row has more than one blank."""
        blank = ~canvas.given
        place = torch.arange(blank.shape[1], device=blank.device)
        last = torch.where(blank, place, -1).amax(1).cpu()
        if bool((blank.sum(1).cpu() != last - canvas.first + 1).any()):
            raise ValueError("a JSON schema describes what is written into one blank, and here a row has several")
        end = self.text.eos_id if canvas.end is None else canvas.end
        assert end is not None
        self.end, grammar = end, compiled(self.schema)
        self.documents = [Document(grammar, vocabulary(self.text), end) for _ in canvas.tokens]
        self.inner.begin(canvas)

    def enter(self, canvas: Canvas) -> None:
        blank = canvas.block.take((canvas.tokens == canvas.mask_id) & ~canvas.given)
        place = canvas.block.positions(blank.device).expand_as(blank)
        for row, document in enumerate(self.documents):
            room = place[row, blank[row]]
            forced = document.forced()[: len(room)] if len(room) else []
            # A leader is predicted by a pass over what is committed, which must be made unless the whole block is.
            if forced and (len(forced) == len(room) or not canvas.look.leads):
                written = document.followed(forced)
                canvas.tokens[row, room[: len(written)]] = torch.tensor(written, device=room.device)
                if document.ended:
                    self.finish(canvas, row)
        self.inner.enter(canvas)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        device, (rows, width) = canvas.tokens.device, canvas.seen.shape
        index = torch.full((rows * width,), -1, device=device)
        index[seen.read] = torch.arange(len(seen.read), device=device)
        index = index.view(rows, width)  # of each position, among the N that were read
        front = index.gather(1, canvas.open.int().argmax(1, keepdim=True))[:, 0]
        ready = (canvas.open.any(1) & (front >= 0)).nonzero()[:, 0]  # (A,) rows with something to write
        front = front[ready]

        plain, size = seen.logits[front], seen.logits.shape[1]
        masks = [torch.from_numpy(self.documents[row].allowed(size, canvas.mask_id)) for row in ready.tolist()]
        allowed = torch.stack(masks).to(device) if masks else torch.zeros_like(plain, dtype=torch.bool)
        agreed = allowed.gather(1, plain.argmax(1, keepdim=True))[:, 0].tolist()
        narrow = restricted(plain, allowed)
        first = self.choice(canvas, narrow, seen.read[front])
        surest = narrow.argmax(1).tolist()

        # The statistics of `seen` stay those of the model's own logits: what a run reports goes by them.
        seen.logits[front] = narrow
        bent = Prediction(seen.logits, seen.read, canvas)
        wanted, best = self.inner.write(canvas, bent).tolist(), bent.best.tolist()
        seen.logits[front] = plain

        tokens, blank, open_ = canvas.seen.clone(), canvas.blank, canvas.open
        for number, row in enumerate(ready.tolist()):
            document, columns = self.documents[row], open_[row].nonzero()[:, 0].tolist()
            theirs, likeliest = ([line[row][column] for column in columns] for line in (wanted, best))
            run = [self.started(document, (theirs[0], first[number], surest[number]), canvas.mask_id)]
            going, last = agreed[number], canvas.step + 1 >= canvas.budget
            while not document.ended and len(run) < len(columns):
                at = len(run)
                if forced := document.followed(document.forced()[: len(columns) - at]):
                    run += forced
                    pairs = zip(forced, theirs[at:], likeliest[at:], strict=False)
                    going = going and all(token in others for token, *others in pairs)
                    continue
                token = theirs[at] if going else canvas.mask_id
                if last and int(index[row, columns[at]]) >= 0:
                    token = self.settled(canvas, seen, document, index[row, columns[at]])
                if token == canvas.mask_id or not document.take(token):
                    break
                run.append(token)
            tokens[row, columns[: len(run)]] = torch.tensor(run, device=device)
            if document.ended:
                tokens[row, blank[row] & (tokens[row] == canvas.mask_id)] = self.end
                self.finish(canvas, row)
        return tokens

    def started(self, document: Document, choices: Sequence[int], mask_id: int) -> int:
        """The first choice that may come next, committed; rounding may have drawn what has no probability."""
        return next(token for token in choices if token != mask_id and document.take(token))

    def settled(self, canvas: Canvas, seen: Prediction, document: Document, at: Tensor) -> int:
        """The token for the position read `at`, out of those that may come next."""
        at = at[None]
        allowed = torch.from_numpy(document.allowed(seen.logits.shape[1], canvas.mask_id)).to(at.device)[None]
        narrow = restricted(seen.logits[at], allowed)
        token = self.choice(canvas, narrow, seen.read[at])[0]
        return token if bool(allowed[0, token]) else int(narrow.argmax())

    def choice(self, canvas: Canvas, logits: Tensor, read: Tensor) -> list[int]:
        """The likeliest tokens or draws at a few of the positions read."""
        return Prediction(logits, read, canvas).choose(self.temperature, self.top_p)[0].view(-1)[read].tolist()

    def finish(self, canvas: Canvas, row: int) -> None:
        """The rest of the row, also beyond the block, is the end of the text."""
        rest = (canvas.tokens[row] == canvas.mask_id) & ~canvas.given[row]
        canvas.tokens[row, rest] = self.end


def fits(decoder: Decoder) -> bool:
    """Does it write what one ordinary pass over the block says, and leave it there?"""
    kind = type(decoder)
    own = kind.ask is not Decoder.ask or kind.reads is not Decoder.reads or kind.done is not Decoder.done
    needs = decoder.ahead or decoder.reaches or decoder.lingers or decoder.afresh or decoder.guide
    return not (own or needs or decoder.revises or decoder.takes_back)


def restricted(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits (n, V) of the `allowed` (n, V) tokens alone; what the model holds impossible may still be needed."""
    least = torch.finfo(logits.dtype).min
    return logits.nan_to_num(nan=least, neginf=least).masked_fill(~allowed, -torch.inf)
