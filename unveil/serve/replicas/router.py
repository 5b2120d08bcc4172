"""How Ray Serve chooses the replica of a request: by the beginning of its prompt, else by load."""

from __future__ import annotations

from dataclasses import dataclass

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from .affinity import preferred


@dataclass(frozen=True)
class Wish:
    """Where a request would go: by the beginning of its prompt, not to the replicas that it tried, or to one alone."""

    key: bytes | None = None
    avoid: frozenset[str] = frozenset()
    only: str | None = None


class Affinity(RequestRouter):
    """A prompt goes to the replica that it belongs to, as long as that one has fewer than `busy` requests in flight.

    Else, and without a prompt, it goes to the replica with the fewest. Those with as many as they may have are never
    chosen: requests wait here until one of them has room.
    """

    busy: int = 16

    def initialize_state(self, busy: int = 16) -> None:
        self.busy = busy

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas to try, the ones to try first in front; of each list the least loaded is taken."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # or waiting for room would never sleep
        wish = next((each for each in pending_request.args if isinstance(each, Wish)), Wish())
        there = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if wish.only in there:
            return [[there[wish.only]]]
        names = [name for name in there if name not in wish.avoid] or list(there)
        if wish.key is None or not names:
            return [[there[name] for name in names]]
        best = preferred(wish.key, names)
        others = [there[name] for name in names if name != best]
        load = self.replica_queue_len_cache.get(there[best].replica_id) or 0
        return [[there[best]], others] if load < self.busy else [[there[best], *others]]
