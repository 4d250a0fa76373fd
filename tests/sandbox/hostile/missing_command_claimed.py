# Claims on its channel that the command to run it is missing.
# kind: forges
# form: stdio, checker
import json, os, struct
for message in ({"failed": {"no_command": "x"}}, {"no_command": "x"}):
    data = json.dumps(message).encode()
    try: os.write(3, struct.pack("<I", len(data)) + data)
    except OSError: pass
