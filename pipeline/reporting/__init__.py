"""Reports: one self-contained HTML file of a results folder, or of one saved adapter."""

from onceclip.pipeline.reporting.pages import write_adapter_report, write_results_report

__all__ = ["write_adapter_report", "write_results_report"]
