"""Commands: compose a configuration, call flowlab, say what happened."""
