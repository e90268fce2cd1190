"""Extractions and sweeps by several processes: of this machine, or of those that a dask scheduler has."""


