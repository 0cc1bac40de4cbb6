"""A key-value cache with room: it grows and shrinks in place.

transformers' DynamicCache copies every key and value at each token, and again whenever rows leave: a third of the time
of a small model. Shapes: R rows, H key-value heads, T tokens so far, D numbers a head.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer's keys and values [R, H, T, D]: views of buffers that have room for the tokens to come."""

    def __init__(self, layer: DynamicLayer, index: Tensor, *, room: int) -> None:
        """Take over a prefilled ``layer``: row i starts as its row ``index[i]``, with ``room`` more tokens to come."""
        super().__init__()
        self.is_initialized, self.dtype, self.device = True, layer.dtype, layer.device
        self._buffers = [
            _spread(states, index, room=room) for states in (layer.keys, layer.values) if states is not None
        ]
        self._show(rows=len(index), tokens=layer.get_seq_length())

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, after those of one new token [R, H, 1, D] were put behind them."""
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._tokens : self._tokens + 1] = states
        return self._show(rows=self._rows, tokens=self._tokens + 1)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Let row i be what row ``indices[i]`` was; only the rows that move are copied."""
        indices = indices.to(self._buffers[0].device)
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for buffer in self._buffers:
            buffer[moved, :, : self._tokens] = buffer[indices[moved], :, : self._tokens]
        self._show(rows=len(indices), tokens=self._tokens)

    def _show(self, *, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        self._rows, self._tokens = rows, tokens
        keys, values = (buffer[:rows, :, :tokens] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


def make_room(cache: DynamicCache, index: Tensor, *, room: int) -> None:
    """Give each of the rows ``index`` a copy of its prompt's state, in place, with ``room`` for more tokens.

    Layers of another kind, such as those of a sliding window, keep their own way of growing. Each layer may be on a
    device of its own.
    """
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = RoomyLayer(layer, index, room=room)
        else:
            layer.batch_select_indices(index.cpu())  # pyright: ignore[reportAttributeAccessIssue]


def fill_holes(going: Tensor) -> Tensor:
    """The order that keeps the rows where ``going`` [R] is true and moves as few as can be: the last into the gaps."""
    n = int(going.sum())
    order = torch.arange(n, device=going.device)
    order[~going[:n]] = going[n:].nonzero()[:, 0] + n
    return order


def _spread(states: Tensor, index: Tensor, *, room: int) -> Tensor:
    _, heads, tokens, width = states.shape
    buffer = states.new_empty(len(index), heads, tokens + room, width)
    buffer[:, :, :tokens] = states[index.to(states.device)]
    return buffer
