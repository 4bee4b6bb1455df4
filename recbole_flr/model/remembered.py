"""A value that is computed from weights, and computed again only after a weight has changed."""

import torch


class Remembered:
    """Keeps the last value while no gradients are recorded. While they are, the value is always computed, as a part of the graph."""

    def __init__(self):
        self._key, self._value = None, None

    def of(self, tensors, compute):
        """compute(), or what it gave for the same tensors.

        Args:
            tensors: iterable of all tensors that the value depends on. A change in place, such as a step of an optimizer or new
                weights from a checkpoint, is noticed by torch's version counter.
            compute: function without arguments.
        """
        if torch.is_grad_enabled():
            self._key = self._value = None
            return compute()
        key = [(tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device) for tensor in tensors]
        if key != self._key:
            self._key, self._value = key, compute()
        return self._value
