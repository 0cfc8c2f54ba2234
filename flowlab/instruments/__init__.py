"""Passes that ask more of a network than its table: see each module's first line for what."""
