"""What shapes alone decide."""
