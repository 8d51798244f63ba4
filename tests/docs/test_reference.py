"""The reference is what the code says, every page is in the site's contents, and no link leads nowhere."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def test_committed_pages_are_not_stale():
    wanted = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    there = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")}
    stale = sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))
    assert not stale, "run: python docs/generate.py"


def test_every_setting_of_the_recipe_is_in_it():
    text = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    for said in (
        "`learning_rate`",
        "`refuse_above`",
        "finetune.schedule",
        "evaluate.gate",
        "## near_duplicates",
        "tunesmith data preview",
    ):
        assert said in text


def test_every_page_is_in_the_contents():
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))

    def listed(entries):
        for entry in entries:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else listed(value)

    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(listed(config["project"]["nav"])) == there


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        other = page.parent / path if path else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}, (
                target
            )


def test_paths_that_a_decision_names_exist():
    for page in (DOCS / "decisions").glob("0*.md"):
        text = page.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 25
        named = re.findall(r"`(src/[^`]+)`", text)
        assert named, page
        assert all((ROOT / name).exists() for name in named), named
