"""The showdown: one task, one base model, equal compute, and several ways to train compared on one page."""

from .contest import Contest as Contest
from .contest import open_contest as open_contest
from .settings import Showdown as Showdown
