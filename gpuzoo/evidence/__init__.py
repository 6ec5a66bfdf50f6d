"""What a run proves: its record, its pictures, its progress."""
