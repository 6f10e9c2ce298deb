"""Results for people: tables, figures where matplotlib is installed, and (`report.page`) reports of evaluations."""

from .corpus import write_corpus_report
from .figures import COLOURS, check_figure, has_plots, plot_bars, plot_layers, plot_loss, smoothed
from .tables import accuracy, interval, markdown_table, percent, table, width

__all__ = [
    "COLOURS", "accuracy", "check_figure", "has_plots", "interval", "markdown_table", "percent", "plot_bars",
    "plot_layers", "plot_loss", "smoothed", "table", "width", "write_corpus_report",
]
