"""The command line: arguments, what runs, what is printed, exit codes."""
