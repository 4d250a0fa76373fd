# Prints wrong answers that a terminal would hide, with the right one last on the line.
# kind: forges
# form: stdio
print("7\r3\x1b[1A\x1b[2K" + "\x0c" * 3)
