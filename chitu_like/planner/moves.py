"""Small changes of a placement, drawn at random: the steps of a local search."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from chitu_like.planner.flow_graph import Layers

Move = Callable[[random.Random, list[Layers], Sequence[int], int], None]
"""Changes layers in place; nodes hold at most so many, of a model with so many."""

_FARTHEST = 3  # layers by which a boundary moves at once


def move_node(
    rng: random.Random, layers: list[Layers], most: Sequence[int], num_layers: int
) -> None:
    """Put a node elsewhere: to begin or end where another begins or ends, full as often as not."""
    i, j = rng.randrange(len(layers)), rng.randrange(len(layers))
    held = most[i] if rng.random() < 0.5 else rng.randint(1, most[i])
    boundary = (
        rng.choice((*layers[j], 0, num_layers)) if rng.random() < 0.2 else rng.choice(layers[j])
    )
    start = boundary - held * (rng.random() < 0.5)
    start = min(max(start, 0), num_layers - held)
    layers[i] = (start, start + held)


def stretch_node(
    rng: random.Random, layers: list[Layers], most: Sequence[int], num_layers: int
) -> None:
    """Let a node hold a few layers more or fewer at one end."""
    i = rng.randrange(len(layers))
    start, end = layers[i]
    by = rng.randint(1, _FARTHEST) * rng.choice((-1, 1))
    if rng.random() < 0.5:
        start = min(max(start + by, 0, end - most[i]), max(end - 1, 0))
    else:
        end = max(min(end + by, num_layers, start + most[i]), start + 1)
    layers[i] = (start, end)


def shift_boundary(
    rng: random.Random, layers: list[Layers], most: Sequence[int], num_layers: int
) -> None:
    """Move a boundary, and every node that begins or ends there, as far as all of them can."""
    boundary = rng.choice(rng.choice(layers))
    if not 0 < boundary < num_layers:
        return
    target = boundary + rng.randint(1, _FARTHEST) * rng.choice((-1, 1))
    for i, (start, end) in enumerate(layers):
        if end == boundary:
            layers[i] = (max(start, target - most[i]), target)
        elif start == boundary:
            layers[i] = (target, min(end, target + most[i]))
        else:
            continue
        if not 0 <= layers[i][0] < layers[i][1] <= num_layers:
            layers[i] = (start, end)


def swap_nodes(
    rng: random.Random, layers: list[Layers], most: Sequence[int], num_layers: int
) -> None:
    """Let two nodes take each other's place, each as much of it as it holds."""
    i, j = rng.randrange(len(layers)), rng.randrange(len(layers))
    layers[i], layers[j] = (
        _within(rng, layers[j], most[i]),
        _within(rng, layers[i], most[j]),
    )


def split_node(
    rng: random.Random, layers: list[Layers], most: Sequence[int], num_layers: int
) -> None:
    """Cut a node's layers in two and give one part to another node."""
    i, j = rng.randrange(len(layers)), rng.randrange(len(layers))
    start, end = layers[i]
    if i == j or end - start < 2:
        return
    middle = rng.randint(start + 1, end - 1)
    first, second = (i, j) if rng.random() < 0.5 else (j, i)
    layers[first] = (max(start, middle - most[first]), middle)
    layers[second] = (middle, min(end, middle + most[second]))


def join_node(
    rng: random.Random, layers: list[Layers], most: Sequence[int], num_layers: int
) -> None:
    """Let a node hold what another does, as a replica of it."""
    i, j = rng.randrange(len(layers)), rng.randrange(len(layers))
    layers[i] = _within(rng, layers[j], most[i])


def _within(rng: random.Random, layers: Layers, most: int) -> Layers:
    """One end of layers, as many as fit."""
    start, end = layers
    held = min(end - start, most)
    return (start, start + held) if rng.random() < 0.5 else (end - held, end)


_WEIGHTS: tuple[tuple[Move, int], ...] = (
    (move_node, 6),
    (stretch_node, 5),
    (shift_boundary, 4),
    (swap_nodes, 2),
    (split_node, 2),
    (join_node, 1),
)
MOVES: tuple[Move, ...] = tuple(move for move, weight in _WEIGHTS for _ in range(weight))
"""Each as often as it is drawn."""
