"""What a run leaves behind: folder and record, and how those of two runs differ."""
