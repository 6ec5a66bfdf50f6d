"""What a person sees: progress on the screen, pictures."""
