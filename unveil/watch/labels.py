"""Put labels beside points so that they cover neither points nor each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ANGLES = 16  # directions tried around a point
REACHES = (10, 16, 24, 36, 52, 74, 104, 140)  # pixels between a point and its label
SWEEPS = 4  # times every label is placed anew among the others
AIR = 2  # pixels kept free around a label


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; which way y points does not matter."""

    left: float
    low: float
    right: float
    high: float

    def shared(self, other: Box) -> float:
        """Square pixels of both."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(width, 0.0) * max(height, 0.0)

    def grown(self, by: float) -> Box:
        return Box(self.left - by, self.low - by, self.right + by, self.high + by)


def place(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[Box], room: Box
) -> list[Box]:
    """A box of its size for each point, within `room`, as near as what is `taken` and the other labels allow."""
    options = [candidates(point, size, room) for point, size in zip(points, sizes, strict=True)]
    costs = [
        [distance / 8 + sum(min(box.grown(AIR).shared(other), 40.0) for other in taken) for box, distance in each]
        for each in options
    ]
    chosen = [min(range(len(each)), key=each.__getitem__) for each in costs]
    for _ in range(SWEEPS):
        before = list(chosen)
        for index, each in enumerate(options):
            others = [options[i][chosen[i]][0] for i in range(len(options)) if i != index]
            total = [
                cost + sum(3 * box.grown(AIR).shared(other) for other in others)
                for cost, (box, _) in zip(costs[index], each, strict=True)
            ]
            chosen[index] = min(range(len(total)), key=total.__getitem__)
        if chosen == before:
            break
    return [each[i][0] for each, i in zip(options, chosen, strict=True)]


def candidates(point: tuple[float, float], size: tuple[float, float], room: Box) -> list[tuple[Box, float]]:
    """Boxes around a point, each with how far it is from it. At least one, whatever the room."""
    (x, y), (width, height) = point, size
    found = []
    for reach in REACHES:
        for turn in range(ANGLES):
            angle = 2 * math.pi * turn / ANGLES
            across, up = math.cos(angle), math.sin(angle)
            left = x + across * (reach + width / 2) - width / 2
            low = y + up * (reach + height / 2) - height / 2
            box = Box(left, low, left + width, low + height)
            if box.left >= room.left and box.right <= room.right and box.low >= room.low and box.high <= room.high:
                found.append((box, reach))
    return found or [(Box(x, y, x + width, y + height), 0.0)]


def nearest(box: Box, point: tuple[float, float]) -> tuple[float, float]:
    """The place on a box that is closest to a point."""
    return min(max(point[0], box.left), box.right), min(max(point[1], box.low), box.high)
