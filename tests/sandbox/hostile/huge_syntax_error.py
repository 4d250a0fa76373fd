# Is wrong Python by a line of six megabytes, which a syntax error quotes.
# kind: resources
# form: check, stdio
exec("x = " + "'a' " * 1_500_000 + "!")
