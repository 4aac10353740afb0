"""Samplers of negatives."""

from sslkit_plugins.samplers.bank_negatives import BankNegatives
from sslkit_plugins.samplers.in_batch import KeyNegatives, in_batch
from sslkit_plugins.samplers.memory_bank import MemoryBank
from sslkit_plugins.samplers.queue import Queue, as_queue
from sslkit_plugins.samplers.scores import COSTS, Costs

__all__ = [
    "COSTS",
    "BankNegatives",
    "Costs",
    "KeyNegatives",
    "MemoryBank",
    "Queue",
    "as_queue",
    "in_batch",
]
