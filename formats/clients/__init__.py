"""Other programs' doors to compressed slides: what each of them looks for, in a file of its name."""
