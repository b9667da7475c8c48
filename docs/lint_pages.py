"""The generated pages on lint: its rules and its targets. docs/generate.py writes them."""

import re

from surgery.cli.views.targets import compiler_of, fact_rows
from surgery.lint.base import Rule, known_rules
from surgery.lint.code_pages import page_of
from surgery.npu.target import Target, known_targets, load_target


def rules_page() -> str:
    """Every rule in a table, then the page of each under an anchor that its code names."""
    rules = list(known_rules().values())
    lines = ["# Rules of lint", ""]
    lines += [
        "L1xx read the plan, L2xx the graphs (`--graph`), L3xx are the compiler's verdicts",
        "(`--prove`). `surgery explain CODE` prints the page of one, and `allow` takes its name.",
        "",
        "| code | name | severity | known by |",
        "|---|---|---|---|",
    ]
    lines += [_rule_row(rule) for rule in rules]
    return "\n".join([*lines, "", *(_rule_section(rule) for rule in rules)])


def _rule_row(rule: Rule) -> str:
    link = f"[{rule.code}](#{rule.code.lower()})"
    return f"| {link} | `{rule.name}` | {rule.severity} | {rule.evidence}: {rule.known_by} |"


def _rule_section(rule: Rule) -> str:
    title, _, text = page_of(rule.code).partition("\n")
    text = re.sub(r"(?m)^##", "###", text)
    return f"#{title} {{ #{rule.code.lower()} }}\n{text}"


def targets_page() -> str:
    """Every target with all that is known of it, and by whom."""
    targets = [load_target(name) for name in known_targets()]
    lines = ["# Targets", ""]
    lines += [
        "The devices that `surgery lint --target` knows, each fact with its source. What is not",
        "here is not known. `surgery targets show NAME` prints the same.",
        "",
    ]
    return "\n".join([*lines, *(_target_section(target) for target in targets)])


def _target_section(target: Target) -> str:
    aliases = "".join(f", alias `{alias}`" for alias in target.aliases)
    lines = [f"## `{target.name}`", ""]
    lines += [f"{target.device}{aliases}. Compiler: {compiler_of(target)}.", ""]
    lines += ["| fact | value | evidence | source | date |", "|---|---|---|---|---|"]
    for row in fact_rows(target):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join([*lines, ""])
