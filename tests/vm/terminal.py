"""A terminal for commands that tests start."""

# Where these tests run in the background, SIGINT is ignored, and children inherit that; at a terminal it is not.
AT_TERMINAL = ("env", "--default-signal=INT")
