"""Reports as self-contained HTML pages, tables of papers, comparisons, and descriptions of stores and adapters."""
