"""The generated reference holds every command, key, system and experiment."""

from __future__ import annotations

from docs.generate_reference import pages
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.fields import entries
from t2i_hpc.config.tasks import TASK_SCHEMAS
from tests.support.documents import ROOT


def test_every_key_of_every_command_is_there() -> None:
    made = pages()
    for task, schema in TASK_SCHEMAS.items():
        section = made["commands.md"].split(f"\n## {task}\n")[1].split("\n## ")[0]
        for entry in entries(compose_config(task, [], schema)):
            where = made["systems.md"] if entry.key.startswith("system.") else section
            where = made["commands.md"] if task == "pretrain" and where is section else where
            assert f"| `{entry.key}` |" in where, entry.key
            assert entry.meaning.doc.replace("|", "\\|") in where, entry.key


def test_every_system_and_experiment_is_there() -> None:
    for page, group in (("systems.md", "system"), ("experiments.md", "experiment")):
        for file in (ROOT / "configs" / group).glob("*.yaml"):
            assert f"\n## {file.stem}\n" in pages()[page]


def test_tables_have_four_columns_in_every_row() -> None:
    for text in pages().values():
        for line in text.splitlines():
            if line.startswith("|"):
                assert line.replace("\\|", "").count("|") == 5, line
