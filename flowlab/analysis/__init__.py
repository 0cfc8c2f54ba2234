"""What tables say: statistics over seeds, verdicts, the batch law."""
