"""Commands: compose a configuration, call flowlab, say what happened."""

import sys

loading = None
# While Python locates a module to run, as for `python -m experiments.run`, argv[0] is "-m": only
# then is a command about to import what may be slow, interrupted or have something to say.
if sys.argv[:1] == ["-m"]:
    from experiments.console import Loading, settle

    settle()
    loading = Loading()
