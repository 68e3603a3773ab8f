"""What `stellarbyte doctor` looks at, a concern a file."""
