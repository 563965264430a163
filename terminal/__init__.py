"""What the command line shows and reads: arguments, progress, result files."""
