"""Many fits of one model in one compiled program."""
