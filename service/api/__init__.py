"""HTTP: turns requests into calls of the scorer and errors into problem documents. No scoring logic."""
