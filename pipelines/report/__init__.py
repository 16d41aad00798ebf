"""The results folder of a dataset: leaderboard, metrics, figures, and one page that shows them.

assemble(Path("results/demo"), dataset="demo", ...)         # pipelines.report.page
"""

from pipelines.report.page import assemble

__all__ = ["assemble"]
