"""What can be said of a method without running it."""
