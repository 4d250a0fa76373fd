# Answers itself, without Python's loop: says that its class is typing.get_type_hints, whose annotations are then run.
# kind: lies
# form: objects_chain, objects
import json, os, struct
CODE = """[exec('''
import sys
frame = sys._getframe()
while frame is not None:
    if "run_test" in frame.f_globals: frame.f_globals["failure"] = lambda error: {"status": "passed"}
    frame = frame.f_back
''', {}), int][1]"""
def send(value):
    data = json.dumps(value).encode(); os.write(3, struct.pack("<I", len(data)) + data)
def take(count):
    data = b""
    while len(data) < count:
        part = os.read(3, count - len(data))
        if not part: os._exit(0)
        data += part
    return data
send({"loaded": True})
while True:
    asked = json.loads(take(struct.unpack("<I", take(4))[0]))
    if "look" in asked:
        send({"kinds": {n: ["class", [0, "object"]] if n == "Point" else ["imported", ["typing", "get_type_hints"]] for n in asked["look"]}})
    elif "call" in asked: send({"value": ["object", [1, "Point"]], "changed": {}})
    elif asked.get("get") == "__annotations__": send({"value": ["dict", [["x", CODE]]]})
    else: send({"error": {"type": "AttributeError", "bases": ["AttributeError"], "text": "", "args": ["tuple", []]}})
