"""What a folder of results holds: tables and experiments, written whole or not at all."""
