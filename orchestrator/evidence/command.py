"""What `orchestrator reproduce` does."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from orchestrator.evidence.rendering import write_page
from orchestrator.evidence.running import Order, Plan, check_made, estimate, make, time_rows
from orchestrator.tables import fields_table, print_table


def reproduce(order: Order, console: Console, *, dry_run: bool, time: bool) -> None:
    """Make the table; with `dry_run` only check and estimate, with `time` run the first trial of every row and estimate."""

    def tell(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    plan = Plan(order)
    plan.check(tell)
    if time:
        time_rows(plan, tell)
    if dry_run or time:
        print_estimate(plan, console)
        return
    failed = make(plan, tell)
    tell(f"{plan.results.path}\n{write_page(order.table, plan.table, order.out)}" if plan.results.rows() else "no rows were made")
    check_made(failed)


def print_estimate(plan: Plan, console: Console) -> None:
    """Print what the rows take: seconds per run where some was timed, and the time left."""
    print_table(console, fields_table({row: f"{each:>7} s per run   {left}" if each else left for row, each, left in estimate(plan)}))
