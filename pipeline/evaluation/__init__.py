"""Scores of fitted classifiers: metrics, intervals, and what is scored among which classes."""
