# Answers with objects whose repr takes for ever, for whoever writes a message about the wrong answer.
# kind: resources
# form: call, assert, check, inspect
class Slow(list):
    def __repr__(self):
        while True: pass
    __str__ = __format__ = __repr__
def add(a, b): return Slow()
