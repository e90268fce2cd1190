"""The commands, each in a file of its name or of what it is about: thin, and free of heavy imports, so that help is
instant.
"""

from onceclip.pipeline.commands.demo import demo
from onceclip.pipeline.commands.evaluate import evaluate
from onceclip.pipeline.commands.export import export
from onceclip.pipeline.commands.extract import extract, import_
from onceclip.pipeline.commands.fit import fit
from onceclip.pipeline.commands.methods import methods
from onceclip.pipeline.commands.predict import predict, suggest
from onceclip.pipeline.commands.results import compare, report, table
from onceclip.pipeline.commands.retrieve import retrieve
from onceclip.pipeline.commands.stores import compact, draws, info, verify
from onceclip.pipeline.commands.sweep import incremental, sweep
from onceclip.pipeline.commands.text import text

COMMANDS = (extract, text, import_, draws, fit, sweep, incremental, evaluate, predict, suggest, retrieve, report, table,
            compare, export, info, verify, compact, methods, demo)  # in the order of use
