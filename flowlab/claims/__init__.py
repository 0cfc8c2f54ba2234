"""Claims: what is said of gradient flow, each measured against its exact or predicted value.

``flowlab.claims.run()`` measures all of them: one row each, with a verdict and a sentence. To add
some, add a file to this folder: every module here is imported, and its ``@claim`` functions join
the suite; a layer with a twin in JAX and PyTorch (see ``twins``) enters S2 and S15.
"""

from flowlab.claims.claim import CLAIMS, Claim, Finding, claim
from flowlab.claims.suite import load, run, select

__all__ = ["CLAIMS", "Claim", "Finding", "claim", "load", "run", "select"]
