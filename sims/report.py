"""What people look at: tables in the terminal, and one self-contained HTML page with plots."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from sims.comparison import Summary
from sims.evaluation import Score
from sims.outcome import Outcome
from sims.utility import Loss, Quality, Spread, UtilityReport

mpl.use("Agg")

FROM_ZERO = ("epsilon", "MB")
"""Plots in which a difference must not look larger than it is."""


def print_outcome(outcome: Outcome, console: Console) -> None:
    """The run: quality and privacy by hospital, traffic and time."""
    table = Table(
        title=f"{outcome.scenario}: {len(outcome.rounds)} rounds, model {outcome.model_hash[:12]}"
    )
    for column in (
        "",
        "AUC",
        "accuracy",
        "patients",
        "epsilon",
        "delta",
        "unit",
        "adjacency",
        "MB per round",
    ):
        table.add_column(column, justify="left" if column in ("", "unit", "adjacency") else "right")
    for site, score in outcome.quality.sites.items():
        spent = outcome.spent.get(site)
        privacy = (
            (f"{spent.epsilon:.3f}", f"{spent.delta:g}", spent.unit, spent.adjacency)
            if spent is not None and spent.epsilon > 0
            else ("none", "", "", "")
        )
        traffic = outcome.as_json()["bytes_per_round"][site] / 1e6
        table.add_row(site, *_figures(score), *privacy, f"{traffic:.1f}")
    table.add_section()
    table.add_row("all held-out patients", *_figures(outcome.quality.pooled), style="bold")
    console.print(table)
    if outcome.shared_noise is not None:
        console.print(f"All sums: {outcome.shared_noise.words}.")
    console.print(f"{outcome.seconds:.1f} s in all.")


def print_comparison(summaries: list[Summary], seeds: int, console: Console) -> None:
    """Every method over all seeds."""
    table = Table(title=f"AUC on held-out patients, mean of {seeds} splits")
    for column in ("method", "pooled AUC", "± sd", "accuracy", *summaries[0].site_auc_mean):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for s in summaries:
        sites = [f"{auc:.3f}" for auc in s.site_auc_mean.values()]
        table.add_row(
            s.method, f"{s.auc_mean:.4f}", f"{s.auc_spread:.4f}", f"{s.accuracy_mean:.3f}", *sites
        )
    console.print(table)


def print_utility(report: UtilityReport, console: Console) -> None:
    """What every epsilon costs, beside the aims and beside the logistic regression under the same budget."""
    privacy = report.levels[0].privacy
    table = Table(
        title=f"{report.scenario}: {report.plain.people} {privacy.unit}s, mean ± sd of {len(report.seeds)} seeds. Epsilon: "
        f"total of a run at each site, counts and losses included; delta {privacy.delta:g}, "
        f"{privacy.unit}, {privacy.adjacency}",
        caption="Losses are points (hundredths) against the same kind of model without privacy.",
    )
    for column in (
        "epsilon",
        "model",
        "AUC",
        "AUC lost",
        "aim",
        "accuracy",
        "accuracy lost",
        "aim",
    ):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for outcome in (report.plain, *report.levels):
        is_private = outcome.privacy.is_private
        epsilon = f"{outcome.privacy.epsilon:g}" if is_private else "no DP"
        table.add_row(epsilon, "mixture of experts", *_costs(outcome.mixture), style="bold")
        table.add_row(epsilon, "logistic regression", *_costs(outcome.logistic), end_section=True)
    console.print(table)


def _costs(quality: Quality) -> tuple[str, ...]:
    return (
        _spread(quality.auc, 4),
        *_loss(quality.auc_loss),
        _spread(quality.accuracy, 4),
        *_loss(quality.accuracy_loss),
    )


def _loss(loss: Loss | None) -> tuple[str, str]:
    if loss is None:
        return "", ""
    if loss.aim is None:
        return _spread(loss.points, 2), ""
    return _spread(loss.points, 2), f"<= {loss.aim:g} {'met' if loss.is_met else 'missed'}"


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.mean:.{digits}f} ± {spread.spread:.{digits}f}"


def write_html(
    path: Path, *, outcome: Outcome, summaries: list[Summary], seeds: int, verdicts: list[str]
) -> None:
    """One page without external resources: tables, and plots as embedded SVG."""
    environment = Environment(loader=PackageLoader("sims", "."), autoescape=select_autoescape())
    rounds = outcome.rounds
    auc = {"all": [(r.number, r.quality.pooled.auc) for r in rounds]}
    epsilon, traffic = {}, {}
    for site in outcome.sites:
        auc[site] = [(r.number, r.quality.sites[site].auc) for r in rounds]
        epsilon[site] = [(r.number, r.epsilon_by_site.get(site)) for r in rounds]
        traffic[site] = [(r.number, r.bytes_by_site.get(site, 0) / 1e6) for r in rounds]
    plots = {
        "AUC on held-out patients": _plot("AUC", auc),
        "Epsilon spent in all (delta, unit and adjacency as in the table)": _plot(
            "epsilon", epsilon
        ),
        "Megabytes per round and site": _plot("MB", traffic),
        "Training loss before each round, as released": _plot(
            "loss", {"all": [(r.number, r.training_loss) for r in rounds]}
        ),
    }
    page = environment.get_template("report.html").render(
        outcome=outcome, summaries=summaries, seeds=seeds, verdicts=verdicts, plots=plots
    )
    path.write_text(page, encoding="utf-8")


def _figures(score: Score) -> tuple[str, str, str]:
    auc = "one label" if score.auc is None else f"{score.auc:.3f}"
    return auc, f"{score.accuracy:.3f}", str(score.patients)


def _plot(label: str, lines: Mapping[str, Sequence[tuple[int, float | None]]]) -> Markup:
    """An SVG of one line per name over rounds, safe to embed: the only text in it is ours."""
    figure = Figure(figsize=(7, 3.2), layout="tight")
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot(
            [x for x, y in points if y is not None],
            [y for _, y in points if y is not None],
            marker="o",
            markersize=3,
            label=name,
            linewidth=2.5 if name == "all" else 1.2,
        )
    if label in FROM_ZERO:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    return Markup(drawing.getvalue()[drawing.getvalue().index("<svg") :])  # noqa: S704
