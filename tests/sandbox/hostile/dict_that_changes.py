# Answers with a dict, a list and an iterator that give other items each time they are read.
# kind: lies
# form: order_any, order_set, large_set
import random
class Shifting(list):
    def __iter__(self): return iter([random.random() for _ in range(random.randrange(5))])
    def __len__(self): return 1000
    def __eq__(self, other): return True
    def __contains__(self, item): return True
class Missing(dict):
    def __missing__(self, key): return key
    def __iter__(self): return iter(range(20000))
    def __len__(self): return 20000
def numbers(n): return Missing() if n == 20000 else Shifting()
