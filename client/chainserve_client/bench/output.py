"""The folder that a run is kept in: report.md for people, report.json with everything, requests.csv, plots as SVG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainserve.errors import UsageError
from chainserve_client.bench.figures import Run
from chainserve_client.bench.plots import plots_of
from chainserve_client.bench.report import to_csv, to_json, to_markdown


def prepare(folder: Path) -> None:
    """Make the folder, before anything is measured for it; UsageError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").touch()
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror}") from None


def write(folder: Path, run: Run, settings: Mapping[str, Any]) -> None:
    """Write all of a run."""
    plots = plots_of(run)
    files = {
        "report.json": to_json(run, settings) + "\n",
        "requests.csv": to_csv(run),
        "report.md": to_markdown(run, settings, plots=list(plots)),
        **plots,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
