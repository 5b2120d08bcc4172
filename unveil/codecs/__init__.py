"""What people read and look at, to tokens and back: one codec per file."""
