"""The commands, one file each: thin, and free of heavy imports, so that help is instant."""

from onceclip.pipeline.commands.compact import compact
from onceclip.pipeline.commands.compare import compare
from onceclip.pipeline.commands.demo import demo
from onceclip.pipeline.commands.draws import draws
from onceclip.pipeline.commands.evaluate import evaluate
from onceclip.pipeline.commands.export import export
from onceclip.pipeline.commands.extract import extract
from onceclip.pipeline.commands.fit import fit
from onceclip.pipeline.commands.importing import import_
from onceclip.pipeline.commands.incremental import incremental
from onceclip.pipeline.commands.info import info
from onceclip.pipeline.commands.methods import methods
from onceclip.pipeline.commands.predict import predict
from onceclip.pipeline.commands.report import report
from onceclip.pipeline.commands.retrieve import retrieve
from onceclip.pipeline.commands.suggest import suggest
from onceclip.pipeline.commands.sweep import sweep
from onceclip.pipeline.commands.table import table
from onceclip.pipeline.commands.text import text
from onceclip.pipeline.commands.verify import verify

COMMANDS = (extract, text, import_, draws, fit, sweep, incremental, evaluate, predict, suggest, retrieve, report, table,
            compare, export, info, verify, compact, methods, demo)  # in the order of use
