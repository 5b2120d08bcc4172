"""From text on disk to batches of tokens."""

from .chat import Conversations, converse, training_turns
from .corpus import Corpus, prepare, training_texts
from .order import Packed, Stream
from .pairs import Pairs, compare
from .sources import Document, read, rows

__all__ = [
    "Conversations",
    "Corpus",
    "Document",
    "Packed",
    "Pairs",
    "Stream",
    "compare",
    "converse",
    "prepare",
    "read",
    "rows",
    "training_texts",
    "training_turns",
]
