"""Passes that ask more of a network than its table: the ledger, subsets of the batch."""
