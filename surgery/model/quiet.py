"""Silence the output of transformers and peft while our own code runs."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

_LOCK: Final = threading.Lock()
_STACK: Final = ExitStack()
_inside = 0


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, log lines below errors, and warnings; restored afterwards.

    Also a decorator. The settings belong to the process: the first caller to enter changes them,
    the last to leave, in any thread, restores them. Imports transformers.
    """
    global _inside  # noqa: PLW0603
    with _LOCK:
        if _inside == 0:
            _STACK.enter_context(_silenced())
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                _STACK.close()


@contextmanager
def _silenced() -> Iterator[None]:
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
