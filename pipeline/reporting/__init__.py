"""Reports: one self-contained HTML file of a results folder, or of one saved adapter."""

from onceclip.pipeline.reporting.adapter_page import write_adapter_report
from onceclip.pipeline.reporting.results_page import write_results_report

__all__ = ["write_adapter_report", "write_results_report"]
