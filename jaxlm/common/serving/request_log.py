"""One line of the log for every request: method, path, status, tokens, seconds; never what it says."""

import logging
import sys

from jaxlm.common.serving.request_watch import AnsweredRequest

LONGEST_METHOD = 20  # characters
log = logging.getLogger("jaxlm.serving")


def log_request(answered: AnsweredRequest) -> None:
    """Write the line of a request that has ended."""
    words = [f"{answered.method[:LONGEST_METHOD]} {answered.sent_path} {answered.status}"]
    if answered.generations:
        words.append(f"{answered.prompt_tokens} tokens in, {answered.generated_tokens} out")
    words.append(f"{answered.seconds:.2f} s")
    if answered.has_left:
        words.append("the client left")
    log.info(", ".join(words))


class _QuietHandler(logging.StreamHandler):
    """A handler that survives the end of its terminal or pipe."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line if it cannot be written."""
        if not isinstance(sys.exception(), OSError | ValueError):
            super().handleError(record)


def start_log() -> None:
    """Write the lines to stderr, with the time of day."""
    handler = _QuietHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
