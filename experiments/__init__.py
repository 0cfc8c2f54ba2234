"""Commands: compose a configuration, call flowlab, say what happened."""

from experiments.console import settle

settle()
