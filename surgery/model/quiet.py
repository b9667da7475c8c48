"""Keep the chatter of transformers and peft from a user's terminal while our own code runs."""

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
    """Silence progress bars, log lines below errors, and warnings; all as before afterwards.

    Also a decorator. What is silenced belongs to the process: the first to come in silences it, the
    last to go out, in whichever thread, puts it back. Imports transformers.
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
