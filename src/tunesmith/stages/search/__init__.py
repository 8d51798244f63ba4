"""Search: which settings to train with; trials are stopped early, the best go on to the end, and the winner is what finetune hands on."""

from .settings import Search as Search
