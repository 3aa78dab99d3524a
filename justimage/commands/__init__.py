"""The command `jit`: one module for each command, imported when it is called."""
