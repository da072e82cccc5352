"""What a server needs of an engine artifact: files that stand alone, to be copied beside a served model."""
