"""Hostile answers of a hub's server: other headers, statuses and bodies than a hub would send."""

from collections.abc import Callable
from random import Random

from hub_server import Reply
from mutators import BYTES, PATHS, STRINGS, json_bytes

HEADERS = (
    *("X-Repo-Commit", "ETag", "X-Linked-Etag", "X-Linked-Size", "Content-Length", "Location"),
    *("Content-Encoding", "Content-Range", "X-Xet-Hash", "Link", "X-Error-Code", "X-HF-Warning"),
)
ESCAPES = ("../../../escaped", '"../../../escaped"', 'W/"../../../escaped"', "..", "/")
VALUES = (*ESCAPES, *PATHS, *STRINGS, "0", "-1", "gzip", "a" * 40, "A" * 64, str(2**63))
STATUSES = (204, 206, 301, 302, 307, 400, 401, 403, 404, 410)


def tampering(random: Random) -> Callable[[Reply], None]:
    """A change of some of the answers of one kind."""
    kind = random.choice(("listing", "facts", "content"))
    how = random.choice(("headers", "headers", "body", "body", "names", "status", "endless"))

    def tamper(reply: Reply) -> None:
        if reply.kind != kind:
            return
        reply.headers["Connection"] = "close"
        if how == "headers":
            for name in random.sample(HEADERS, random.choice((1, 1, 2, 4))):
                value = random.choice(VALUES).replace("\n", " ")
                reply.headers[name] = value.encode("latin-1", "replace").decode("latin-1")
        elif how == "status":
            reply.status = random.choice(STATUSES)
        elif how == "endless" and kind != "listing":  # which huggingface_hub reads whole
            reply.repeated, reply.content = True, reply.content or b" " * 4096
        elif how == "names" and kind == "listing":
            old = random.choice((b"README.md", b"tokenizer", b"a" * 40))
            new = random.choice((*ESCAPES, *PATHS)).replace('"', "").replace("\\", "\\\\")
            reply.content = reply.content.replace(old, new.encode("utf-8", "replace"))
        else:
            change = (
                json_bytes if kind == "listing" and random.random() < 0.7 else random.choice(BYTES)
            )
            reply.content = change(reply.content, random)

    return tamper
