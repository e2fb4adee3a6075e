"""Examples at the end of each verb's help. A line of its own keeps its line breaks."""

from __future__ import annotations


def _lines(*commands: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


MAIN = _lines(
    "pft init tickets.csv              propose a job file",
    "pft plan job.yaml                 price it; nothing is read",
    "pft budget create job.yaml        register the data, set its budget",
    "pft train job.yaml                fine-tune",
    "pft report RUN                    what may leave the house",
)
PLAN = _lines(
    "pft plan job.yaml",
    "pft plan job.yaml --set privacy.epsilon=2 --set training.phases.0.steps=60",
    "pft plan --size 60000 --batch-size 256 --steps 2344 --noise-multiplier 1",
    "pft plan --size 60000 --batch-size 256 --steps 2344 --epsilon 1",
)
TRAIN = _lines(
    "pft train job.yaml --dry-run",
    "pft train job.yaml",
    "pft train job.yaml --address 10.0.0.7:6379 --set cluster.workers=8",
    "pft train job.yaml --resume RUN",
    "pft train job.yaml --wait",
)
PROFILE = _lines(
    "pft profile job.yaml",
    "pft profile job.yaml --set cluster.workers=1 --json",
)
REPORT = _lines("pft report RUN", "pft report RUN --json > report.json")
PREDICT = _lines(
    'pft predict RUN "Your parcel is on its way" "Win a prize now"',
    "pft predict RUN --file texts.txt --json",
)
EXPORT = _lines("pft export RUN adapter/", "pft export RUN model/ --merge")
INIT = _lines("pft init tickets.csv --out job.yaml")
SCHEMA = _lines("pft schema > job.schema.json")
CREATE = _lines(
    "pft budget create job.yaml --runs 10",
    "pft budget create job.yaml --epsilon 8 --delta 1e-4",
    "pft budget create job.yaml --mode filter --purpose training=0.8 --purpose "
    "tuning=0.2",
)
SHOW = _lines(
    "pft budget show",
    "pft budget show tickets/train --plot burn-down.svg",
    "pft budget show tickets/train --json",
)
HISTORY = _lines("pft budget history --run RUN --limit 200")
VERIFY = _lines("pft budget verify", "pft budget verify --runs /srv/runs --json")
ALLOCATE = _lines(
    "pft budget allocate tickets/train --jobs-left 3 --after RUN",
)
EXPORT_LEDGER = _lines("pft budget export /backup/ledger-2026-11.jsonl")
IMPORT_CHECK = _lines("pft budget import-check /backup/ledger-2026-11.jsonl")
RELEASE = _lines("pft budget release RUN")
MOVE = _lines(
    "pft budget move tickets/train --from tuning --to training --fraction 0.1",
    "pft budget move tickets/train --from training --to training/epoch-2 --rho 0.05",
)
RESERVE = _lines(
    "pft budget reserve job.yaml",
    "pft budget reserve job.yaml --expires 30m --wait",
    "pft budget reserve first.yaml --together second.yaml",
)
QUEUE = _lines("pft budget queue", "pft budget queue --order dpf --dpf-n 10")
LEAVE = _lines("pft budget leave RUN")
