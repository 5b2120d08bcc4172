"""From text on disk to batches of tokens."""

from .chat import Conversations, converse
from .corpus import Corpus, prepare
from .order import Packed, Stream
from .sources import Document, read, rows

__all__ = ["Conversations", "Corpus", "Document", "Packed", "Stream", "converse", "prepare", "read", "rows"]
