"""The catalogue: one file per architecture family, one function per model."""
