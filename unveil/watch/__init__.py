"""Looking at a run: what each step changed, in the terminal and on a page."""
