# Answers with as many ints of one hash as the expected set has items.
# kind: resources
# form: large_set
# limits: {"wall_s": 1, "cpu_s": 1}
import json, os, struct, time
def numbers(n):
    items = [["int", hex(k * (2 ** 61 - 1))] for k in range(2, n + 2)]  # to build the set here would take as long
    data = json.dumps({"value": ["set", items], "changed": {}}, separators=(",", ":")).encode()
    data = memoryview(struct.pack("<I", len(data)) + data)
    while data: data = data[os.write(3, data):]
    time.sleep(9)
