"""What everything else stands on: errors, validation of arguments, text, files, arrays, the JAX runtime."""
