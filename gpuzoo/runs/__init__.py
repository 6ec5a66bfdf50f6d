"""What a run leaves behind: its folder, its record, and how those of two runs differ."""
